"""The KV cache as a stake: pages for all positions that a plan computes, cached prefixes for those that start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.base.plan import Copies, Ints, Longs, Pages, Part, Rows
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.cache.kv import KVCache

FORESIGHT = 64  # tokens by which running requests may grow before a start must not have taken their pages
MOST_FORESIGHT = 4096


class KVStake(Stake):
    """Asks and tells `kv` for the requests that are in `slots`.

    A start must leave room for the rest of all prompts and for some growth of those who run. That foresight doubles
    whenever somebody has to give way, and shrinks again.
    """

    scarce = True

    def __init__(self, kv: KVCache, slots: Slots) -> None:
        self.kv = kv
        self._slots = slots
        self._until: Ints = np.zeros(len(slots.owner), np.int32)  # the position up to which a slot has pages
        self._foresight = FORESIGHT
        self._planned = 0  # the plan for which something was promised last
        self._promised: Longs = np.zeros(len(kv.groups), np.int64)
        self._seated: list[int] = []  # slots taken by that plan, whose growth is not promised yet

    @property
    def relief(self) -> int:  # type: ignore[override]
        # What running requests have and what they were promised only moves from one to the other, unless there is relief.
        return (self.kv.relief << 16) - self._foresight // self.kv.page_size

    # -- starts ---------------------------------------------------------------------------------------------------

    def enter(self, request: Request, number: int) -> bool:
        """Lease the cached prefix if there is room for the rest of the known tokens and for everybody's growth."""
        kv, slots = self.kv, self._slots
        promised = self._promises(number)
        kv.enter(request)
        growth = min(len(request.tokens) + self._foresight, request.limit)
        roomy = slots.num_running == 0 or kv.fits(request, growth, promised.tolist())
        if roomy and all(kv.num_available(g) for g in range(len(kv.groups))):
            return True
        kv.leave(request, b"", number=number)
        return False

    def seat(self, request: Request, number: int) -> int:
        cached = self.kv.install(request, number=number)
        self._until[request.slot] = self.kv.horizon(request)
        self._seated.append(request.slot)
        if request.cached_tokens < 0:
            request.cached_tokens = cached
        return cached

    def pressed(self) -> None:
        self._foresight = min(MOST_FORESIGHT, 2 * self._foresight)

    def _promises(self, number: int) -> Longs:
        """Pages per group that running requests will ask for."""
        if number != self._planned:
            self._planned = number
            self._promised = self._growth(self._slots.owner.nonzero()[0])
        elif self._seated:
            self._promised = self._promised + self._growth(np.array(self._seated))
        self._seated.clear()
        return self._promised

    def _growth(self, slots: Longs) -> Longs:
        """Pages per group for the rest of these slots' prompts and some growth."""
        s = self._slots
        ahead = np.minimum(s.known[slots] + self._foresight, s.limit[slots]) - self._until[slots]
        pages = -(-np.maximum(ahead, 0) // self.kv.page_size)
        # In a windowed group old pages are let go of as new ones are taken.
        sums = [pages.sum() if window is None else np.minimum(pages, 2).sum() for window in self.kv.tree.windows]
        return np.array(sums, np.int64)

    # -- chunks ---------------------------------------------------------------------------------------------------

    def resume(self, request: Request, start: int) -> int:
        return self.kv.extend(request, start, self._known(request.slot))

    def clamp(self, request: Request, start: int, count: int) -> int:
        return self.kv.clamp(request, start, count, seen=start - int(self._slots.slack[request.slot]))

    def take(self, request: Request, start: int, end: int, number: int) -> int:
        taken = self.kv.reserve(request, end, after=end - int(self._slots.slack[request.slot]))
        assert taken, "clamp promised these pages"
        self.kv.publish(request, self._known(request.slot)[: 4 * end], start=start, number=number)
        self._until[request.slot] = until = self.kv.horizon(request)
        return until

    def _known(self, slot: int) -> bytes:
        return self._slots.history[slot, : self._slots.known[slot]].tobytes()

    # -- steady rows ----------------------------------------------------------------------------------------------

    def take_steady(self, slots: Ints, ends: Ints, number: int) -> Ints:
        """A page more for each that needs one; for drafts that reach beyond it more if there are any."""
        until = self._until[slots]
        due = (ends > until).nonzero()[0]
        if len(due):
            self._turn(slots[due], ends[due], until[due], number)
            until = self._until[slots]
        return until

    def _turn(self, due: Ints, ends: Ints, until: Ints, number: int) -> None:
        s, fed = self._slots, self._slots.fed[due]
        if self.kv.advance(due, s.requests, until, np.minimum(s.known[due], fed), s.history, number):
            until = self._until[due] = until + self.kv.page_size
        else:
            self._publish(due, number)
        for place in ((ends > until) & (fed < until)).nonzero()[0].tolist():
            request = s.of(int(due[place]))
            if self.kv.reserve(request, int(ends[place])):
                self._until[request.slot] = self.kv.horizon(request)

    def _publish(self, slots: Ints, number: int) -> None:
        """What is full goes to the tree; pages exchanged for equal ones there are free for the others."""
        s = self._slots
        for slot in slots.tolist():
            start = int(s.fed[slot] - s.slack[slot])
            self.kv.publish(s.of(slot), s.planned(slot), start=start, number=number)

    # -- plans and departures -------------------------------------------------------------------------------------

    def parts(self, rows: Rows) -> Sequence[Part]:
        self._foresight = max(FORESIGHT, self._foresight - 1)
        parts: list[Part] = []
        changes, copies = self.kv.take_changes()
        if changes is not None:
            parts.append(Pages(changes))
        if copies is not None:
            parts.append(Copies(copies))
        runs = self.kv.runs(rows.steady, rows.version, self._slots.requests)
        if runs is not None:
            parts.append(runs)
        return parts

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        planned = b""
        if request.running:
            planned = self._slots.planned(request.slot)
            self.kv.tree.written = number  # the last plan that was made
        # What was computed of a thinned prompt is no other request's; who comes back computes it again.
        self.kv.leave(request, planned, number=number, discard=not trusted or request.gaps is not None)

    def reset(self) -> None:
        self.kv.take_changes()
        self.kv.audit([])  # who had entered, and has no slot to be found in, leases nothing any more
        self.kv.flush()

    def audit(self, running: Sequence[Request]) -> int:
        return self.kv.audit(running)
