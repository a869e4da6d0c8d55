"""A drafter on the host as a stake: it proposes what may follow in steady rows.

At depth 0 all tokens are known when a plan is made, and drafts go down with it. Behind a step in flight they are
proposed as soon as the step before it has landed, so they have to reach further: over all that the step in flight may
yield, and as many drafts behind it.

    known             known + flying
    │ yielded in flight │ drafts of the next step │
    └────────────── proposed ─────────────────────┘
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from sapwood.base.plan import Bools, Drafts, Ints, LatePart, Part, Plan, Rows, Stretch
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake


class Drafter(Stake):
    """Feeds up to `most` drafts per row, those that `propose` gives. Subclasses say what they are."""

    def __init__(self, slots: Slots, *, most: int) -> None:
        self.most = most
        self._slots = slots
        num_slots = len(slots.owner)
        # Of the last proposal of each slot: whose it was, after how many known tokens, and how far it reaches.
        self._owner = np.zeros(num_slots, np.int64)
        self._known: Ints = np.zeros(num_slots, np.int32)
        self._reach: Ints = np.zeros(num_slots, np.int32)
        self._proposed: list[Stretch] = []  # for the plan being made

    @abstractmethod
    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int]:
        """Up to `count` tokens that may follow the request's `tokens`, all that are known."""

    def drafts(self, slots: Ints, lengths: Ints, most: int) -> Ints | None:
        s = self._slots
        for slot in slots[s.flying[slots] == 0].tolist():
            self._propose(slot, self.most, self._proposed)
        mine = self._owner[slots] == s.owner[slots]
        drafts: Ints = np.where(mine, np.clip(self._reach[slots] - lengths, 0, self.most), 0).astype(np.int32)
        # First come, first served, when there is not room for all.
        drafts = np.diff(np.minimum(np.cumsum(drafts), most), prepend=0).astype(np.int32)
        return drafts if drafts.any() else None

    def parts(self, rows: Rows) -> Sequence[Part]:
        return self._take(self._proposed)

    def fill(self, plan: Plan, alive: Bools) -> LatePart | None:
        s = self._slots
        proposed: list[Stretch] = []
        for slot in plan.steady[alive[: plan.num_steady]].tolist():
            if self._known[slot] != s.known[slot] or self._owner[slot] != s.owner[slot]:
                self._propose(slot, self.most + int(s.flying[slot]), proposed)
        return next(iter(self._take(proposed)), None)

    def _propose(self, slot: int, count: int, proposed: list[Stretch]) -> None:
        """Write a proposal to the host's books, and note it for the device's."""
        s = self._slots
        known = int(s.known[slot])
        tokens = np.array(self.propose(s.of(slot), s.history[slot, :known], count)[:count], np.int32)
        tokens = tokens[: s.history.shape[1] - known]
        s.history[slot, known : known + len(tokens)] = tokens
        self._owner[slot], self._known[slot], self._reach[slot] = s.owner[slot], known, known + len(tokens)
        if len(tokens):
            proposed.append(Stretch(slot, known, tokens))

    def _take(self, proposed: list[Stretch]) -> tuple[Drafts, ...]:
        drafts = (Drafts(tuple(proposed)),) if proposed else ()
        proposed.clear()
        return drafts
