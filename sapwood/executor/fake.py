"""An executor that computes nothing and checks everything: for tests and for timing the host alone.

Every KV cell holds a hash of the tokens up to its position. A row writes its cells, then every row checks each cell
that its queries would read. The next token is a function of the whole prefix, so a request yields the same tokens
whatever ran beside it, however it was chunked, preempted or overlapped. Where a mask leaves some tokens, it is one of
these. The hidden state of a position is its number and its token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sapwood.arch.groups import joint_groups, kv_groups
from sapwood.base.adapter import Adapter
from sapwood.base.insight import Insight
from sapwood.base.kv import KVGroup, most_rewound
from sapwood.base.pages import Bytes, Moves, Rooms
from sapwood.base.plan import (
    Admissions,
    Admit,
    Bits,
    Copies,
    Drafts,
    Floats,
    Ints,
    Known,
    LatePart,
    Longs,
    Masked,
    Masks,
    Outcome,
    PageCopy,
    Pages,
    Plan,
    Propose,
    TokenLogprobs,
)
from sapwood.base.sampling import SamplingParams
from sapwood.base.stake import NOW, Ready
from sapwood.base.trial import Trial
from sapwood.base.weights import Given, Group, Held, Level, Sent
from sapwood.executor.base import Measured

if TYPE_CHECKING:
    from sapwood.arch.network import Network
    from sapwood.config.options import Config
    from sapwood.hub.draft import DraftModel
    from sapwood.hub.files import ModelFiles

Hashes = NDArray[np.uint64]
Fed = tuple[int, int, int]
"""A slot, and the positions from one up to another."""

MULTIPLIER = 6364136223846793005
MASK = 2**64 - 1


def next_hash(prefix: int, token: int) -> int:
    return ((prefix ^ (token + 1)) * MULTIPLIER + 1442695040888963407) & MASK


def next_token(prefix: int, vocab_size: int, allowed: Sequence[int] | None = None) -> int:
    """One of the `allowed` tokens, of all without them."""
    number = prefix >> 33
    return number % vocab_size if allowed is None else allowed[number % len(allowed)]


def guess(prefix: int, vocab_size: int) -> int:
    """What a draft model takes the next token to be: it is right about three of four."""
    return next_token(prefix, vocab_size) if prefix >> 20 & 3 else prefix % vocab_size


def measured(
    config: Config,
    decoder: Network,
    name: str,
    kv_bytes: int | None = None,
    *,
    max_drafts: int = 0,
    draft: DraftModel | None = None,
) -> Measured:
    """Of a model that nothing computes: its KV cache takes `kv_bytes`, else what the options say."""
    page_size, depth = config.cache.page_size, config.scheduler.depth
    assert page_size is not None and depth is not None, "a resolved configuration"
    decoders = [decoder] if draft is None else [decoder, draft.decoder]
    groups = joint_groups(decoders, page_size, most_rewound(max_drafts, depth))
    given = config.cache.kv_cache_memory
    return Measured(groups=groups, kv_bytes=kv_bytes or given or 0, backends=(name,) * len(groups), seconds={})


@dataclass(eq=False)
class Work:
    """A step, where its rows really start, and once it is sampled what each of them yields."""

    plan: Plan
    starts: Ints
    runs: list[list[int]] = field(default_factory=list)


class FakeExecutor:
    """A device with `kv_bytes` for keys and values, or what the options say. `poison`: a prompt with this token fails inside."""

    def __init__(self, *, kv_bytes: int | None = None, poison: int | None = None) -> None:
        self.poison = poison
        self.salt = 0
        self.away: set[Held] = set()
        self._kv_bytes = kv_bytes

    def scout(self, config: Config, model: DraftModel) -> Callable[[Ints], Floats]:
        return lambda tokens: tokens.astype(np.float32)  # the greatest numbers matter most

    def start(
        self,
        config: Config,
        decoder: Network,
        files: ModelFiles,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
    ) -> Measured:
        found = measured(config, decoder, "fake", self._kv_bytes, max_drafts=max_drafts, draft=draft)
        assert config.scheduler.max_num_seqs is not None and config.model.max_model_len is not None
        self._take(found.groups, config.scheduler.max_num_seqs, config.model.max_model_len, decoder.vocab_size)
        self._drafting = 0 if draft is None else len(kv_groups(draft.decoder, self.page_size))
        return found

    @classmethod
    def of(
        cls,
        groups: Sequence[KVGroup],
        num_pages: Sequence[int],
        *,
        max_num_seqs: int,
        max_model_len: int,
        vocab_size: int = 1000,
        poison: int | None = None,
        drafting: int = 0,
    ) -> Self:
        """One that has started, without a model; the last `drafting` groups are those of the model that drafts."""
        made = cls(poison=poison)
        made._take(groups, max_num_seqs, max_model_len, vocab_size)
        made._drafting = drafting
        made.allocate(num_pages)
        return made

    def allocate(self, num_pages: Sequence[int]) -> None:
        sizes = [count * group.cells for count, group in zip(num_pages, self.groups, strict=True)]
        self.cells: list[Hashes] = [np.zeros(size, np.uint64) for size in sizes]

    def capture(self) -> None:
        pass

    def time_steps(self, trials: Sequence[Trial], *, budget: float) -> list[float]:
        return [1.0] * len(trials)  # all steps alike

    def pager(self, num_blocks: Sequence[int], memory: Rooms | None = None) -> FakePager:
        return FakePager(self.cells, [group.cells for group in self.groups], num_blocks)

    def adapters(self) -> NullAdapters:
        return NullAdapters()

    def _take(self, groups: Sequence[KVGroup], max_num_seqs: int, max_model_len: int, vocab_size: int) -> None:
        self.groups = groups
        self.vocab_size = vocab_size
        self.page_size = groups[0].page_size
        pages_per_slot = -(-(max_model_len + 1) // self.page_size) + 1
        self.tables = [np.zeros((max_num_seqs, pages_per_slot), np.int32) for _ in groups]
        self.fed = np.zeros(max_num_seqs, np.int64)
        self.tokens = np.zeros((max_num_seqs, max_model_len + 2), np.int64)
        self.hashes: Hashes = np.zeros((max_num_seqs, max_model_len + 2), np.uint64)
        self.admits: dict[int, Admit] = {}
        self.num_steps = 0
        self.num_fed = 0

    def forward(self, plan: Plan) -> Work:
        """Everything at once: nothing here runs beside anything else."""
        assert not self.away, "a step while something is away"
        if (admissions := plan.part(Admissions)) is not None:
            for admit in admissions.admits:
                self._admit(admit)
        if (known := plan.part(Known)) is not None:
            for stretch in known.stretches:
                for position, token in enumerate(stretch.tokens.tolist(), stretch.start):
                    self._set_token(stretch.slot, position, token)
        if (drafts := plan.part(Drafts)) is not None:
            self._draft(drafts)
        if (pages := plan.part(Pages)) is not None:
            for table, change in zip(self.tables, pages.changes, strict=True):
                table[change.slots_A, change.indices_A] = change.pages_A
        if (copies := plan.part(Copies)) is not None:
            self._copy(copies.copies)
        if (propose := plan.part(Propose)) is not None:
            self._propose(propose)
        starts = plan.starts_R.copy()
        starts[: plan.num_steady] = self.fed[plan.steady]
        assert (starts <= plan.starts_R).all(), "a row starts no later than the host thinks"
        spans = list(zip(plan.slots_R.tolist(), starts.tolist(), (starts + plan.counts_R).tolist(), strict=True))
        for row, (slot, start, end) in enumerate(spans):
            if row < plan.num_steady:
                for position in range(start + 1, end):  # drafts, behind a token that may have been another
                    self._set_token(slot, position, int(self.tokens[slot, position]))
            self.fed[slot] = end
        self._compute(spans, plan.heads_R.tolist(), range(len(self.groups)))
        self.num_steps += 1
        self.num_fed += plan.num_tokens
        return Work(plan, starts)

    def proposed(self, work: Work) -> Ints:
        propose, found = work.plan.part(Propose), []
        if propose is not None and propose.told:
            begins = dict(zip(work.plan.steady.tolist(), work.starts.tolist(), strict=False))
            for slot, count in zip(propose.slots_P.tolist(), propose.counts_P.tolist(), strict=True):
                found += self.tokens[slot, begins[slot] + 1 : begins[slot] + 1 + count].tolist()
        return np.array(found, np.int32)

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        return np.empty((num_rows, width or -(-self.vocab_size // 32)), np.int32)

    def sample(self, work: Work, late: tuple[LatePart, ...] = ()) -> None:
        plan = work.plan
        allowed = self._allowed(plan.part(Masked), next((part for part in late if isinstance(part, Masks)), None))
        head = 0
        for row, heads in enumerate(plan.heads_R.tolist()):
            slot, end = int(plan.slots_R[row]), int(work.starts[row] + plan.counts_R[row])
            run: list[int] = []
            for place, position in enumerate(range(end - heads + 1, end + 1), start=head):
                run.append(next_token(int(self.hashes[slot, position - 1]), self.vocab_size, allowed.get(place)))
                if position == end or run[-1] != self.tokens[slot, position]:
                    break
            for position, token in enumerate(run, start=end - heads + 1):
                self._set_token(slot, position, token)
            self.fed[slot] -= heads - len(run)
            head += heads
            work.runs.append(run)
        for part in late:
            if isinstance(part, Drafts):
                self._draft(part)

    def _allowed(self, masked: Masked | None, masks: Masks | None) -> dict[int, list[int]]:
        """The tokens that each masked head may draw."""
        assert (masks is None) == (masked is None), "masks for the heads that are masked, and for these alone"
        if masks is None or masked is None:
            return {}
        flags = np.unpackbits(masks.bits_MW.view(np.uint8), axis=1, bitorder="little")[:, : self.vocab_size]
        return {head: np.flatnonzero(one).tolist() for head, one in zip(masked.heads_M.tolist(), flags, strict=True)}

    def result(self, work: Work) -> Outcome:
        plan = work.plan
        errors: dict[int, str] = {}
        logprobs: dict[int, list[TokenLogprobs]] = {}
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        insights: dict[int, dict[Insight, NDArray[Any]]] = {}
        for row, slot in enumerate(plan.slots_R.tolist()):
            admit = self.admits[slot]
            if self.poison is not None and (admit.tokens[: admit.prompt_len] == self.poison).any():
                errors[row] = "poisoned"
            if plan.heads_R[row] and admit.params.logprobs is not None:
                logprobs[row] = [self._logprob(token, admit.params) for token in work.runs[row]]
            if admit.params.prompt_logprobs is not None:
                first = int(work.starts[row]) + 1
                last = min(int(work.starts[row] + plan.counts_R[row]), admit.prompt_len - 1)
                known = self.tokens[slot, first : last + 1].tolist()
                prompt_logprobs[row] = [self._logprob(token, admit.params) for token in known]
            if admit.params.return_hidden_states:
                places = np.arange(work.starts[row], work.starts[row] + plan.counts_R[row])
                insights[row] = {"hidden_states": np.stack([places, self.tokens[slot, places]], 1).astype(np.float32)}
        tokens = np.array([token for run in work.runs for token in run], np.int32)
        yielded = np.array([len(run) for run in work.runs], np.int32)
        return Outcome(tokens, yielded, logprobs, prompt_logprobs, errors, insights=insights)

    def tidy(self) -> bool:
        return False

    def expert_tokens(self) -> Longs:
        return np.zeros((0, 0), np.int64)

    def check_weights(self, given: Given) -> None:
        pass

    def take_weights(self, given: Given) -> None:
        """Hashes begin otherwise, so that tokens are others, and whoever reads what is older finds it wrong."""
        self.salt = next_hash(self.salt, 0)

    def join(self, group: Group) -> None:
        pass

    def leave(self, group_name: str) -> None:
        pass

    def receive(self, sent: Sent, folder: str) -> None:
        pass

    def release(self, held: Sequence[Held], level: Level) -> None:
        assert held
        for cells in self.cells:
            cells[:] = 0
        self.away |= {"kv_cache", *held}

    def restore(self, held: Sequence[Held]) -> None:
        self.away -= {*held}

    def shutdown(self) -> None:
        pass

    @staticmethod
    def _logprob(token: int, params: SamplingParams) -> TokenLogprobs:
        return TokenLogprobs(token, -1.0, 1, [token], [-1.0], [-2.0] * len(params.logprob_token_ids))

    def _admit(self, admit: Admit) -> None:
        self.admits[admit.slot] = admit
        self.fed[admit.slot] = admit.fed
        for position, token in enumerate(admit.tokens.tolist()):
            self._set_token(admit.slot, position, token)

    def _draft(self, drafts: Drafts) -> None:
        """Behind what is fed: a step in flight may have reached further than whoever sent them knew."""
        for stretch in drafts.stretches:
            for position, token in enumerate(stretch.tokens.tolist(), start=stretch.start):
                if position > self.fed[stretch.slot]:
                    self._set_token(stretch.slot, position, token)

    def _propose(self, propose: Propose) -> None:
        """As a draft model does: token by token, each behind its own keys and values."""
        mine = range(len(self.groups) - self._drafting, len(self.groups))
        for slot, count in zip(propose.slots_P.tolist(), propose.counts_P.tolist(), strict=True):
            for position in range(int(self.fed[slot]), int(self.fed[slot]) + count):
                self._compute([(slot, position, position + 1)], [1], mine)
                self._set_token(slot, position + 1, guess(int(self.hashes[slot, position]), self.vocab_size))

    def _set_token(self, slot: int, position: int, token: int) -> None:
        before = int(self.hashes[slot, position - 1]) if position else self.salt
        self.tokens[slot, position] = token
        self.hashes[slot, position] = next_hash(before, token)

    def _copy(self, copies: Sequence[PageCopy]) -> None:
        span = np.arange(self.page_size)
        for cells, copy in zip(self.cells, copies, strict=True):
            assert not set(copy.sources_C.tolist()) & set(copy.targets_C.tolist())
            assert len(set(copy.targets_C.tolist())) == len(copy.targets_C)
            sources = copy.sources_C[:, None] * self.page_size + span
            cells[copy.targets_C[:, None] * self.page_size + span] = cells[sources]

    def _compute(self, spans: Sequence[Fed], heads: Sequence[int], groups: Sequence[int]) -> None:
        """Write what each row leaves, and check what it reads."""
        for g in groups:
            if self.groups[g].kind.divisible:
                for row in spans:
                    self._write(g, *row)
                for row in spans:
                    self._check(g, *row)
            else:
                self._carry(g, spans, heads)

    def _carry(self, group: int, spans: Sequence[Fed], heads: Sequence[int]) -> None:
        """Of what is not divisible: read what is before each row, then write what is behind each of its heads, or its last
        position. Rows are computed in no order, so none may read what another one writes."""
        written: dict[int, int] = {}
        lasts = [
            (slot, max(start, end - max(1, last)), end) for (slot, start, end), last in zip(spans, heads, strict=True)
        ]
        for slot, first, end in lasts:
            pages = self.tables[group][slot, first // self.page_size : (end - 1) // self.page_size + 1].tolist()
            assert not written.keys() & pages, "a page that two rows write"
            written |= dict.fromkeys(pages, slot)
        for slot, start, _ in spans:
            self._check(group, slot, start, start)
            page = int(self.tables[group][slot, (start - 1) // self.page_size]) if start else 0
            assert written.get(page, slot) == slot, (
                f"slot {slot}, group {group}: another row writes what it begins with"
            )
        for row in lasts:
            self._write(group, *row)

    def _at(self, group: int, slot: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        pages = self.tables[group][slot, positions // self.page_size].astype(np.int64)
        assert (pages > 0).all(), f"slot {slot}: a position without a page in group {group}"
        size = self.groups[group].cells
        cells: NDArray[np.int64] = pages * size + positions % size
        return cells

    def _write(self, group: int, slot: int, start: int, end: int) -> None:
        self.cells[group][self._at(group, slot, np.arange(start, end))] = self.hashes[slot, start:end]

    def _check(self, group: int, slot: int, start: int, end: int) -> None:
        first = self.groups[group].kind.oldest(start)
        positions = np.arange(first, end)
        good = self.cells[group][self._at(group, slot, positions)] == self.hashes[slot, first:end]
        if not good.all():
            where = int(positions[~good][0])
            raise AssertionError(f"slot {slot}, group {group}: the cell of position {where} holds something else")


class FakePager:
    """Keeps the protocol `Pager` with pages of hashes."""

    def __init__(self, cells: Sequence[Hashes], sizes: Sequence[int], num_blocks: Sequence[int]) -> None:
        self._pages = [one.reshape(-1, size).view(np.uint8) for one, size in zip(cells, sizes, strict=True)]
        self.blocks: list[Bytes] = [
            np.zeros((count, pages.shape[1]), np.uint8) for pages, count in zip(self._pages, num_blocks, strict=True)
        ]

    def save(self, moves: Sequence[Moves]) -> None:
        for pages, blocks, some in zip(self._pages, self.blocks, moves, strict=True):
            blocks[some.blocks_M] = pages[some.pages_M]

    def load(self, moves: Sequence[Moves]) -> None:
        for pages, blocks, some in zip(self._pages, self.blocks, moves, strict=True):
            assert len(set(some.pages_M.tolist())) == len(some.pages_M), "a page twice"
            pages[some.pages_M] = blocks[some.blocks_M]

    def done(self, handle: None) -> bool:
        return True


class NullAdapters:
    """Keeps the protocol `AdapterHost`: every adapter is there."""

    num_slots = 8

    def fetch(self, adapter: Adapter) -> None:
        pass

    def knows(self, adapter: Adapter) -> bool:
        return True

    def fetched(self, adapter: Adapter) -> Ready:
        return NOW

    def lend(self, slot: int, adapter: Adapter) -> None:
        pass

    def forget(self, adapter: Adapter) -> None:
        pass

    def wait(self, seconds: float) -> None:
        pass

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        return {}, {}

    def close(self) -> None:
        pass
