"""Adapters as a stake: a request is LATER until its adapter is in the host's memory and a slot of the device is promised to it.

A slot is promised before a request stands in line, so that one that waits for a slot holds nobody up. Promises are weak: a request
that starts without one, having been preempted, takes a slot from those who only wait. A slot that nobody has keeps its
adapter until another needs it, the one used last the longest. Adapters in use draw more of their own requests; so that
others do not wait for ever, one that has been passed over PATIENCE times has a slot run empty for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sapwood.base.adapter import Adapter
from sapwood.base.adapters import AdapterHost
from sapwood.base.plan import Adapters, Part, Rows
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, NOW, Ready, Refusal, Stake

PATIENCE = 64


class _Place:
    """A slot of the device: what it holds, who runs with it and who has been promised it (by number), and when it was last taken."""

    __slots__ = ("adapter", "promised", "running", "used")

    def __init__(self) -> None:
        self.adapter: Adapter | None = None
        self.running: set[int] = set()
        self.promised: set[int] = set()
        self.used = 0

    @property
    def idle(self) -> bool:
        return not (self.running or self.promised)


class AdapterStake(Stake):
    """Has a say in all requests: those without an adapter have to be told as well, since they take over slots of others."""

    def __init__(self, host: AdapterHost, slots: Slots) -> None:
        self._host, self._slots = host, slots
        self._places = [_Place() for _ in range(host.num_slots)]
        self._of: dict[str, _Place] = {}  # by the ids of what they hold
        self._mine: dict[int, _Place] = {}  # who has one, by the request's number
        self._loads: dict[int, Adapter] = {}  # for the next plan, by slot
        self._given: dict[int, int] = {}  # likewise by the request's slot; -1: none
        self._clock = 0
        self._passed: dict[int, int] = {}  # those who want a slot and find none, and how often others got one since
        self._emptying: _Place | None = None
        self._evictions = 0
        self.relief = 0

    # -- coming ---------------------------------------------------------------------------------------------------

    def ready(self, request: Request) -> Ready:
        adapter = request.adapter
        if adapter is None:
            return NOW
        if request.id in self._mine:
            return NOW
        if adapter.id not in self._of and (here := self._host.fetched(adapter)) is not NOW:
            return here
        place = self._find(adapter, request.id)
        if place is None:
            self._passed.setdefault(request.id, 0)
            return LATER
        self._hold(request, adapter, place).promised.add(request.id)
        self._served(request.id)
        return NOW

    def wait(self, seconds: float) -> None:
        self._host.wait(seconds)

    def enter(self, request: Request, number: int) -> bool:
        adapter = request.adapter
        if adapter is None:
            return True
        place = self._mine.get(request.id)
        if place is None:
            place = self._of.get(adapter.id) or self._unused(lambda one: not one.running)
            if place is None or (adapter.id not in self._of and self._host.fetched(adapter) is not NOW):
                return False  # it has run before, and what it had then is gone: it has to be `ready` anew
            self._hold(request, adapter, place)
        place.promised.discard(request.id)
        place.running.add(request.id)
        return True

    def seat(self, request: Request, number: int) -> int:
        place = self._mine.get(request.id)
        self._given[request.slot] = -1 if place is None else self._places.index(place)
        return super().seat(request, number)

    def parts(self, rows: Rows) -> Sequence[Part]:
        if not (self._loads or self._given):
            return ()
        slots, adapters = (np.array([*column], np.int32) for column in (self._given, self._given.values()))
        part = Adapters(tuple(self._loads.items()), slots, adapters)
        self._loads, self._given = {}, {}
        return (part,)

    # -- going ----------------------------------------------------------------------------------------------------

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        self._leave(request)

    def forget(self, request: Request) -> None:
        self._passed.pop(request.id, None)
        if not self._passed:
            self._emptying = None
        self._leave(request)

    def _leave(self, request: Request) -> None:
        if (place := self._mine.pop(request.id, None)) is not None:
            place.running.discard(request.id)
            place.promised.discard(request.id)
            self.relief += 1

    def reset(self) -> None:
        """What plans that were cut off have loaded is anybody's guess."""
        for place in self._places:
            place.adapter = None
            place.running.clear()
            place.promised.clear()
        for books in (self._of, self._mine, self._loads, self._given, self._passed):
            books.clear()
        self._emptying = None

    def audit(self, running: Sequence[Request]) -> int:
        """Each running request with an adapter is in the books of the slot that holds it, and nobody else is."""
        wrong, there = 0, {request.id: request.adapter.id for request in running if request.adapter is not None}
        for place in self._places:
            own = {id for id, adapter in there.items() if self._of.get(adapter) is place}
            for id in place.running ^ own:
                wrong += 1
                self._mine.pop(id, None)
                if id in own:
                    self._mine[id] = place
            place.running = own
        return wrong

    def close(self) -> None:
        self._host.close()

    # -- slots ----------------------------------------------------------------------------------------------------

    def _find(self, adapter: Adapter, id: int) -> _Place | None:
        """One that holds the adapter, or could."""
        found = self._of.get(adapter.id)
        if found is None:
            found = self._unused(lambda one: one.idle)
        return None if found is self._emptying and id != self._first else found

    @property
    def _first(self) -> int | None:
        """Who has been passed over the longest."""
        return next(iter(self._passed), None)

    def _unused(self, free: Callable[[_Place], bool]) -> _Place | None:
        """The slot that has been unused the longest of those that are `free`."""
        return min((place for place in self._places if free(place)), key=lambda place: place.used, default=None)

    def _hold(self, request: Request, adapter: Adapter, place: _Place) -> _Place:
        """The request has that place, which holds its adapter from now on."""
        if place is self._emptying:
            self._emptying = None
        if place.adapter is None or place.adapter.id != adapter.id:
            for id in place.promised:  # they find another
                del self._mine[id]
            place.promised.clear()
            if place.adapter is not None:
                del self._of[place.adapter.id]
                self._evictions += 1
            place.adapter, self._of[adapter.id] = adapter, place
            slot = self._places.index(place)
            self._loads[slot] = adapter
            self._host.lend(slot, adapter)
        self._clock += 1
        place.used = self._clock
        self._mine[request.id] = place
        return place

    def _served(self, id: int) -> None:
        """Somebody has got a slot: those who wait for one have been passed over once more, and one of them is too often."""
        if id == self._first or not self._passed.keys() - {id}:
            self._emptying = None
        self._passed.pop(id, None)
        for other in self._passed:
            self._passed[other] += 1
        first = self._first
        if self._emptying is None and first is not None and self._passed[first] >= PATIENCE:
            self._emptying = min(self._places, key=lambda place: len(place.running) + len(place.promised))

    # -- what is told ---------------------------------------------------------------------------------------------

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        counts, seconds = self._host.gauges()
        mine = {
            "adapter_evictions": self._evictions,
            "adapter_slots": len(self._places),
            "adapter_slots_used": sum(not place.idle for place in self._places),
        }
        return {**counts, **mine}, seconds

    @property
    def commands(self) -> Mapping[str, Callable[..., dict[str, Any]]]:
        return {"adapter": self._load, "forget_adapter": self._forget}

    def _load(self, id: str, path: str) -> dict[str, Any]:
        """Have an adapter read: whether it is `loaded`, or its `error`. To be asked again until it is one of these."""
        found = self._host.fetched(Adapter(id, path))
        return {"loaded": found is NOW} | ({"error": found.why} if isinstance(found, Refusal) else {})

    def _forget(self, id: str, path: str) -> dict[str, Any]:
        self._host.forget(Adapter(id, path))
        return {}
