"""A host for tests: keeps the books of slots and pages by hand and lets a worker run the steps.

Suffix legend: T tokens of the step, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.base.plan import Admit, Masked, Masks, Outcome, Plan, Stretch
from sapwood.base.sampling import SamplingParams
from sapwood.runner.worker import Work, Worker
from tests.runner.plans import admit, ints, make_plan

_VERSIONS = itertools.count(1)  # of the steady rows of all desks: one worker may serve several, one after the other


@dataclass
class Seat:
    """A slot in use: its known tokens, how many are fed, and its pages for each group by index."""

    tokens: list[int]
    fed: int
    pages: list[dict[int, int]]


@dataclass
class Step:
    """What came out: the outcome, the slots of its rows, and logits of what each slot fed, up to its end."""

    outcome: Outcome
    slots: list[int]
    logits: dict[int, Tensor] = field(default_factory=dict)

    def tokens(self, slot: int) -> list[int]:
        """What the slot's row yields."""
        ends = np.cumsum(self.outcome.yielded_R)
        row = self.slots.index(slot)
        found: list[int] = self.outcome.tokens_N[ends[row] - self.outcome.yielded_R[row] : ends[row]].tolist()
        return found

    def token(self, slot: int) -> int:
        (token,) = self.tokens(slot)
        return token


class Desk:
    """Pages are handed out in a shuffled order, so that nothing works only because they are consecutive."""

    def __init__(self, worker: Worker, *, num_pages: int, seed: int = 0) -> None:
        self.worker = worker
        self.seats: dict[int, Seat] = {}
        order = np.random.default_rng(seed).permutation(np.arange(1, num_pages)).tolist()
        self._free = [list(order) for _ in worker.groups]
        self._admits: list[Admit] = []
        self._pages: list[dict[int, dict[int, int]]] = []
        self._copies: list[dict[int, int]] = []
        self._steady: list[int] = []
        self._version = 0
        self._clear()

    def _clear(self) -> None:
        self._admits = []
        self._pages = [{} for _ in self.worker.groups]
        self._copies = [{} for _ in self.worker.groups]
        self._known: list[Stretch] = []
        self._drafts: list[Stretch] = []

    def admit(
        self,
        slot: int,
        tokens: Sequence[int],
        *,
        fed: int = 0,
        pages: Sequence[Mapping[int, int]] | None = None,
        prompt_len: int | None = None,
        params: SamplingParams | None = None,
        **more: Any,
    ) -> None:
        """Give a slot to a request; `pages` (by group) already hold its first `fed` tokens."""
        self.seats[slot] = Seat(list(tokens), fed, [dict(group) for group in pages or [{} for _ in self._free]])
        self._admits.append(admit(slot, tokens, fed=fed, prompt_len=prompt_len, params=params, **more))
        for group, changes in enumerate(self._pages):
            changes[slot] = dict(self.seats[slot].pages[group])

    def forget(self, slot: int, group: int, index: int) -> None:
        """Take a page out of a slot's table."""
        del self.seats[slot].pages[group][index]
        self._pages[group].setdefault(slot, {})[index] = 0

    def copy(self, slot: int, index: int) -> None:
        """Before the next step, give the slot a copy of one of its pages in its place."""
        for group, pages in enumerate(self.seats[slot].pages):
            source, pages[index] = pages[index], self._free[group].pop()
            self._copies[group][source] = pages[index]
            self._pages[group].setdefault(slot, {})[index] = pages[index]

    def tell(self, slot: int, tokens: Sequence[int]) -> None:
        """Make tokens known that no step has drawn."""
        seat = self.seats[slot]
        self._known.append(Stretch(slot, len(seat.tokens), ints(tokens)))
        seat.tokens += tokens

    def draft(self, slot: int, tokens: Sequence[int]) -> None:
        """Propose what may follow what the slot knows; the next step feeds it if the slot is steady then."""
        self._drafts.append(Stretch(slot, len(self.seats[slot].tokens), ints(tokens)))

    def step(
        self,
        spans: Mapping[int, int],
        *,
        steady: Iterable[int] = (),
        allowed: Mapping[int, Sequence[int]] | None = None,
    ) -> Step:
        """Feed one token of each steady slot, and its drafts, then so many of each other; those that reach their end
        yield tokens, of those that are `allowed`."""
        steady = list(steady)
        if self._steady != steady:
            self._steady = steady
            self._version = next(_VERSIONS)
        drafted = {one.slot: len(one.tokens) for one in self._drafts}
        counts = {slot: 1 + drafted.get(slot, 0) for slot in steady} | dict(spans)
        for slot, count in counts.items():
            self._take_pages(slot, count)
        rows = []
        for slot, count in counts.items():
            seat = self.seats[slot]
            rows.append((slot, seat.fed, count, count if slot in steady else seat.fed + count == len(seat.tokens)))
        plan = make_plan(rows, admits=self._admits, pages=self._pages, copies=self._copies, num_steady=len(steady),
                         version=self._version, masked=list(allowed or ()), known=self._known,
                         drafts=self._drafts)  # fmt: skip
        self._clear()

        work = self.worker.forward(plan)
        logits = self._logits(work, counts)
        self.worker.sample(work, self._masks(plan, allowed or {}))
        step = Step(self.worker.result(work), list(counts), logits)
        for slot, _, count, heads in rows:
            yielded = step.tokens(slot)
            self.seats[slot].fed += count - (heads - len(yielded))
            self.seats[slot].tokens += yielded
        return step

    @torch.inference_mode()
    def _logits(self, work: Work, counts: Mapping[int, int]) -> dict[int, Tensor]:
        """Of all that each slot fed; of the last token alone where the step was padded."""
        if work.left.hidden_TD is not None:
            logits_TV = self.worker.model.logits(work.left.hidden_TD).cpu()
            return dict(zip(counts, logits_TV.split(list(counts.values())), strict=True))
        yielding = [slot for slot, heads in zip(counts, work.plan.heads_R, strict=True) if heads]
        if not yielding or work.plan.num_heads > len(yielding):
            return {}
        assert work.left.logits_NV is not None
        return dict(zip(yielding, work.left.logits_NV.float().cpu()[: len(yielding), None], strict=False))

    def _masks(self, plan: Plan, allowed: Mapping[int, Sequence[int]]) -> tuple[Masks, ...]:
        masked = plan.part(Masked)
        if masked is None:
            return ()
        bits = self.worker.allocate_masks(len(masked.heads_M))
        bits.fill(0)
        for place, slot in enumerate(np.repeat(plan.slots_R, plan.heads_R)[masked.heads_M].tolist()):
            for token in allowed[slot]:
                bits.view(np.uint32)[place, token // 32] |= np.uint32(1 << token % 32)
        return (Masks(bits),)

    def generate(self, slot: int, num_tokens: int) -> list[int]:
        """Feed what is known in one span, then token by token."""
        seat = self.seats[slot]
        self.step({slot: len(seat.tokens) - seat.fed})
        for _ in range(num_tokens - 1):
            self.step({}, steady=[slot])
        return seat.tokens[-num_tokens:]

    def _take_pages(self, slot: int, count: int) -> None:
        seat = self.seats[slot]
        for number, group in enumerate(self.worker.groups):
            for index in range(seat.fed // group.page_size, (seat.fed + count - 1) // group.page_size + 1):
                if index not in seat.pages[number]:
                    seat.pages[number][index] = self._free[number].pop()
                    self._pages[number].setdefault(slot, {})[index] = seat.pages[number][index]
