"""Drafters as a stake: they are asked what may follow in steady rows, and their pace says how much of it is fed.

At depth 0 all tokens are known when a plan is made, and drafts go down with it. Behind a step in flight they are
proposed as soon as the step before it has landed, so they have to reach further: over all that the step in flight may
yield, and as many drafts behind it.

    known             known + flying
    │ yielded in flight │ drafts of the next step │
    └────────────── proposed ─────────────────────┘

A drafter on the device needs to know no tokens: it goes on from where rows really are, whatever is in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from sapwood.base.drafts import Tally
from sapwood.base.plan import Bools, Drafts, Ints, LatePart, Longs, Part, Plan, Propose, Rows, Stretch
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.draft.drafter import Drafter, OnDevice
from sapwood.draft.pace import Greedy, Pace

_NOBODY = 0  # owns no slot


class DraftStake(Stake):
    """Feeds up to `most` drafts per row: those of the first of the `drafters` that has any, at a `pace`.

    Without a pace all are fed that can be.
    """

    def __init__(self, slots: Slots, drafters: Sequence[Drafter], *, most: int, pace: Pace | None = None) -> None:
        self.most = most
        self._slots, self._drafters = slots, tuple(drafters)
        self._pace: Pace = pace or Greedy(most, len(self._drafters))
        num_slots = len(slots.owner)
        numbers = (number for number, one in enumerate(self._drafters) if isinstance(one, OnDevice))
        self._on_device = next(numbers, None)
        self._masked: Bools = np.zeros(num_slots, np.bool_)  # slots of which the host has to say what may be drawn
        # Of the last proposal of each slot: whose it was and which drafter's, after how many known tokens, how far it reaches.
        self._owner: Longs = np.full(num_slots, _NOBODY, np.int64)
        self._drafter: Ints = np.zeros(num_slots, np.int32)
        self._known: Ints = np.zeros(num_slots, np.int32)
        self._reach: Ints = np.zeros(num_slots, np.int32)
        self._feeds: Ints = np.zeros(num_slots, np.int32)  # whose drafts each slot feeds in the plan being made
        self._proposed: list[Stretch] = []  # for the plan being made
        self._offered = False  # drafts, for the plan being made
        # Of each plan with drafts that has not landed: whose those of its steady rows are; None if another stake's are fed.
        self._flying: deque[Ints | None] = deque()
        self._tallies = [Tally(most) for _ in self._drafters]

    # -- proposing ------------------------------------------------------------------------------------------------

    def drafts(self, slots: Ints, lengths: Ints, most: int) -> Ints | None:
        s = self._slots
        landed = slots[s.flying[slots] == 0]
        self._propose(landed, self._proposed)
        mine = self._owner[slots] == s.owner[slots]
        ready: Ints = np.where(mine, np.clip(self._reach[slots] - lengths, 0, self.most), 0).astype(np.int32)
        drafters, flying = self._drafter[slots], s.flying[slots]
        if self._on_device is not None and (idle := ready == 0).any():
            ahead = np.where(idle, self._pace.reach(slots, s.known[slots])[:, self._on_device], 0)
            drafters, flying = np.where(ahead, self._on_device, drafters), np.where(ahead, 0, flying)
            ready = np.where(ahead, np.minimum(ahead, self.most), ready)
        if not ready.any():
            return None
        drafts = self._pace.share(slots, lengths, drafters, ready, flying, most)
        self._feeds[slots] = drafters
        self._offered = bool(drafts.any())
        return drafts if self._offered else None

    def parts(self, rows: Rows) -> Sequence[Part]:
        self._pace.beside(rows.num_tokens - int(rows.counts_R[: rows.num_steady].sum()))
        feeds = self._feeds[rows.steady] if self._offered else None
        self._offered = False
        parts: tuple[Part, ...] = self._take(self._proposed)
        if not rows.drafted:
            return parts
        self._flying.append(feeds)
        if feeds is not None and self._on_device is not None:
            drafts = rows.counts_R[: rows.num_steady] - 1
            there = ((feeds == self._on_device) & (drafts > 0)).nonzero()[0]
            if len(there):
                told = bool(self._masked[rows.steady[there]].any())  # behind its drafts too; masks are late
                return (*parts, Propose(rows.steady[there], drafts[there], told))
        return parts

    def hear(self, plan: Plan, alive: Bools, proposed: Ints) -> None:
        propose = plan.part(Propose)
        assert propose is not None, "proposed for it"
        s, first = self._slots, 0
        there = set(plan.steady[alive[: plan.num_steady]].tolist())
        for slot, count in zip(propose.slots_P.tolist(), propose.counts_P.tolist(), strict=True):
            if slot in there:
                known = int(s.known[slot])
                s.history[slot, known : known + count] = proposed[first : first + count]
            first += count

    def fill(self, plan: Plan, alive: Bools) -> LatePart | None:
        s = self._slots
        slots = plan.steady[alive[: plan.num_steady]]
        new = (self._known[slots] != s.known[slots]) | (self._owner[slots] != s.owner[slots])
        proposed: list[Stretch] = []
        self._propose(slots[new], proposed)
        return next(iter(self._take(proposed)), None)

    def _propose(self, slots: Ints, proposed: list[Stretch]) -> None:
        """Write proposals to the host's books, and note them for the device's."""
        if not len(slots):
            return
        s = self._slots
        reach = self._pace.reach(slots, s.known[slots])
        self._owner[slots], self._known[slots], self._reach[slots] = s.owner[slots], s.known[slots], 0
        for place in np.flatnonzero(reach.any(axis=1)).tolist():
            self._propose_for(int(slots[place]), reach[place].tolist(), proposed)

    def _propose_for(self, slot: int, reach: list[int], proposed: list[Stretch]) -> None:
        s = self._slots
        known, request, behind = int(s.known[slot]), s.of(slot), int(s.flying[slot])
        room = s.history.shape[1] - known
        for number, drafter in enumerate(self._drafters):
            if not reach[number]:
                continue
            if number == self._on_device:
                return
            count = min(reach[number] + behind, room)
            tokens = _spoken(np.array(drafter.propose(request, s.history[slot, :known], count)[:count], np.int32))
            if len(tokens):
                s.history[slot, known : known + len(tokens)] = tokens
                self._drafter[slot], self._reach[slot] = number, known + len(tokens)
                proposed.append(Stretch(slot, known, tokens))
                return

    def _take(self, proposed: list[Stretch]) -> tuple[Drafts, ...]:
        drafts = (Drafts(tuple(proposed)),) if proposed else ()
        proposed.clear()
        return drafts

    # -- learning -------------------------------------------------------------------------------------------------

    def verified(self, plan: Plan, rows: Longs, right: Ints) -> None:
        s, drafters = self._slots, self._flying.popleft()
        if drafters is None:
            return
        told = plan.heads_R[rows] > 1
        rows, right = rows[told], right[told]
        slots, of, drafts = plan.slots_R[rows], drafters[rows], plan.heads_R[rows] - 1
        known = s.known[slots]
        # Behind a draft that turned out to be wrong in the step before, all are, and that says nothing of them.
        straight = (plan.starts_R[rows] + 1 == known) | (of == self._on_device)
        self._pace.learn(slots[straight], of[straight], drafts[straight], right[straight], known[straight])
        columns = (column.tolist() for column in (slots, of, drafts, right))
        for slot, number, length, good in zip(*columns, strict=True):
            self._tallies[number].add(length, good)
            tallies, name = s.of(slot).drafted, self._drafters[number].name
            if name not in tallies:
                tallies[name] = Tally(self.most)
            tallies[name].add(length, good)

    # -- coming and going -----------------------------------------------------------------------------------------

    def seat(self, request: Request, number: int) -> int:
        self._pace.begin(request.slot)
        self._masked[request.slot] = request.params.restricted
        return super().seat(request, number)

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        for drafter in self._drafters:
            drafter.leave(request)

    def reset(self) -> None:
        self._offered = False
        self._flying.clear()
        self._proposed.clear()

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        """Drafts that were fed and accepted since the start, by drafter."""
        counts: dict[str, int] = {}
        for drafter, tally in zip(self._drafters, self._tallies, strict=True):
            told = tally.told()
            counts[f"drafts_{drafter.name}"] = told.num_fed
            counts[f"accepted_drafts_{drafter.name}"] = told.num_accepted
        return counts, {}


def _spoken(tokens: Ints) -> Ints:
    """Up to where media stand in the text that was read from: those are keys there, and no tokens."""
    placed = tokens < 0
    return tokens[: int(placed.argmax())] if placed.any() else tokens
