"""An executor that computes nothing and checks everything: for tests and for timing the host alone.

Every KV cell holds a hash of the tokens up to its position. A row writes its cells, then every row checks each cell
that its queries would read. The next token is a function of the whole prefix, so a request yields the same tokens
whatever ran beside it, however it was chunked, preempted or overlapped. Where a mask leaves some tokens, it is one of
these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sapwood.base.kv import KVGroup
from sapwood.base.plan import Admit, Bits, Ints, Outcome, Plan, TokenLogprobs

Hashes = NDArray[np.uint64]
MULTIPLIER = 6364136223846793005
MASK = 2**64 - 1


def next_hash(prefix: int, token: int) -> int:
    return ((prefix ^ (token + 1)) * MULTIPLIER + 1442695040888963407) & MASK


def next_token(prefix: int, vocab_size: int, allowed: Sequence[int] | None = None) -> int:
    """One of the `allowed` tokens, of all without them."""
    number = prefix >> 33
    return number % vocab_size if allowed is None else allowed[number % len(allowed)]


class FakeExecutor:
    """Serves plans for `groups` with `num_pages` pages each. `poison`: a prompt with this token fails inside."""

    def __init__(
        self,
        groups: Sequence[KVGroup],
        num_pages: Sequence[int],
        *,
        max_num_seqs: int,
        max_model_len: int,
        vocab_size: int = 1000,
        poison: int | None = None,
    ) -> None:
        self.groups = groups
        self.vocab_size = vocab_size
        self.poison = poison
        self.page_size = groups[0].page_size
        pages_per_slot = -(-(max_model_len + 1) // self.page_size) + 1
        self.tables = [np.zeros((max_num_seqs, pages_per_slot), np.int32) for _ in groups]
        self.cells: list[Hashes] = [np.zeros(count * self.page_size, np.uint64) for count in num_pages]
        self.fed = np.zeros(max_num_seqs, np.int64)
        self.tokens = np.zeros((max_num_seqs, max_model_len + 2), np.int64)
        self.hashes: Hashes = np.zeros((max_num_seqs, max_model_len + 2), np.uint64)
        self.admits: dict[int, Admit] = {}
        self.num_steps = 0
        self.num_fed = 0

    def forward(self, plan: Plan) -> Plan:
        self.num_steps += 1
        self.num_fed += plan.num_tokens
        for admit in plan.admits:
            self._admit(admit)
        for table, change in zip(self.tables, plan.pages, strict=True):
            table[change.slots_A, change.indices_A] = change.pages_A
        for known in plan.known:
            for position, token in enumerate(known.tokens.tolist(), known.start):
                self._set_token(known.slot, position, token)
        self._copy(plan)
        rows = list(zip(plan.slots_R.tolist(), plan.starts_R.tolist(), plan.counts_R.tolist(), strict=True))
        for i, (slot, start, count) in enumerate(rows):
            if i >= plan.num_steady:
                self.fed[slot] = start
            assert self.fed[slot] == start, (
                f"slot {slot}: the plan starts at {start}, the device is at {self.fed[slot]}"
            )
            self._write(slot, start, start + count)
        for slot, start, count in rows:
            self._check(slot, start, start + count)
            self.fed[slot] = start + count
        return plan

    def room(self, num_rows: int, width: int | None = None) -> Bits:
        return np.empty((num_rows, width or -(-self.vocab_size // 32)), np.int32)

    def sample(self, work: Plan, bits_MW: Bits | None = None) -> None:
        assert (bits_MW is None) == (work.masked is None), "masks for the rows that are masked, and for these alone"
        allowed: dict[int, list[int]] = {}
        if bits_MW is not None and work.masked is not None:
            flags = np.unpackbits(bits_MW.view(np.uint8), axis=1, bitorder="little")[:, : self.vocab_size]
            allowed = {row: np.flatnonzero(one).tolist() for row, one in zip(work.masked.tolist(), flags, strict=True)}
        for row in np.flatnonzero(work.yields_R).tolist():
            slot, end = int(work.slots_R[row]), int(work.starts_R[row] + work.counts_R[row])
            prefix = int(self.hashes[slot, end - 1])
            self._set_token(slot, end, next_token(prefix, self.vocab_size, allowed.get(row)))

    def result(self, work: Plan) -> Outcome:
        ends = work.starts_R + work.counts_R
        # Read what this step wrote, even if the slot has changed hands since: later steps write behind it only for the
        # same tenant, and the commit drops another's.
        tokens: Ints = np.where(work.yields_R, self.tokens[work.slots_R, ends], 0).astype(np.int32)
        errors: dict[int, str] = {}
        logprobs: dict[int, TokenLogprobs] = {}
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        for row, slot in enumerate(work.slots_R.tolist()):
            admit = self.admits[slot]
            if self.poison is not None and (admit.tokens[: admit.prompt_len] == self.poison).any():
                errors[row] = "poisoned"
            if work.yields_R[row] and admit.params.logprobs is not None:
                logprobs[row] = self._logprob(int(tokens[row]))
            if admit.params.prompt_logprobs is not None:
                first = int(work.starts_R[row]) + 1
                last = min(int(ends[row]), admit.prompt_len - 1)
                prompt_logprobs[row] = [self._logprob(int(self.tokens[slot, p])) for p in range(first, last + 1)]
        return Outcome(tokens, logprobs, prompt_logprobs, errors)

    def tidy(self) -> bool:
        return False

    def shutdown(self) -> None:
        pass

    @staticmethod
    def _logprob(token: int) -> TokenLogprobs:
        return TokenLogprobs(token, -1.0, 1, [token], [-1.0])

    def _admit(self, admit: Admit) -> None:
        self.admits[admit.slot] = admit
        self.fed[admit.slot] = admit.fed
        for position, token in enumerate(admit.tokens.tolist()):
            self._set_token(admit.slot, position, token)

    def _set_token(self, slot: int, position: int, token: int) -> None:
        before = int(self.hashes[slot, position - 1]) if position else 0
        self.tokens[slot, position] = token
        self.hashes[slot, position] = next_hash(before, token)

    def _copy(self, plan: Plan) -> None:
        span = np.arange(self.page_size)
        for cells, copy in zip(self.cells, plan.copies, strict=True):
            assert not set(copy.sources_C.tolist()) & set(copy.targets_C.tolist())
            assert len(set(copy.targets_C.tolist())) == len(copy.targets_C)
            sources = copy.sources_C[:, None] * self.page_size + span
            cells[copy.targets_C[:, None] * self.page_size + span] = cells[sources]

    def _at(self, group: int, slot: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        pages = self.tables[group][slot, positions // self.page_size].astype(np.int64)
        assert (pages > 0).all(), f"slot {slot}: a position without a page in group {group}"
        cells: NDArray[np.int64] = pages * self.page_size + positions % self.page_size
        return cells

    def _write(self, slot: int, start: int, end: int) -> None:
        positions = np.arange(start, end)
        for g, cells in enumerate(self.cells):
            cells[self._at(g, slot, positions)] = self.hashes[slot, start:end]

    def _check(self, slot: int, start: int, end: int) -> None:
        for g, (group, cells) in enumerate(zip(self.groups, self.cells, strict=True)):
            first = 0 if group.window is None else max(0, start - group.window + 1)
            positions = np.arange(first, end)
            good = cells[self._at(g, slot, positions)] == self.hashes[slot, first:end]
            if not good.all():
                where = int(positions[~good][0])
                raise AssertionError(f"slot {slot}, group {g}: the cell of position {where} holds something else")
