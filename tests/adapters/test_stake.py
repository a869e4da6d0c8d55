"""Who of the requests has a slot of the device: promises, evictions, and nobody who waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sapwood.adapters import AdapterStake
from sapwood.adapters.stake import PATIENCE
from sapwood.base.adapter import Adapter
from sapwood.base.plan import Adapters, Rows
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, NOW, Ready, Refusal
from sapwood.runner.adapters import Shelf

ROWS = Rows(0, 0, *(np.zeros(0, np.int32) for _ in range(4)), np.zeros(0, np.int64))


class Host:
    """Adapters that are there when the test says so."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.answers: dict[str, Ready] = {}
        self.asked: list[str] = []

    def fetch(self, adapter: Adapter) -> None:
        raise AssertionError("fetched by being asked for")

    def knows(self, adapter: Adapter) -> bool:
        return True

    def fetched(self, adapter: Adapter) -> Ready:
        self.asked.append(adapter.id)
        return self.answers.get(adapter.id, NOW)

    def lend(self, slot: int, adapter: Adapter) -> None: ...

    def forget(self, adapter: Adapter) -> None:
        self.answers.pop(adapter.id, None)

    def wait(self, seconds: float) -> None: ...

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        return {}, {}

    def close(self) -> None: ...


class Room:
    """A stake with so many slots, and requests that come and go as the scheduler has them."""

    def __init__(self, num_slots: int) -> None:
        self.host, self.slots = Host(num_slots), Slots(16, 64)
        self.stake = AdapterStake(self.host, self.slots)
        self._ids = iter(range(1, 1000))

    def ask(self, adapter: str | None) -> Request:
        made = None if adapter is None else Adapter(adapter, f"/{adapter}")
        return Request(next(self._ids), np.arange(4), SamplingParams(), limit=32, adapter=made)

    def ready(self, request: Request) -> Ready:
        return self.stake.ready(request)

    def start(self, request: Request) -> bool:
        if not self.stake.enter(request, 1):
            return False
        self.slots.assign(request, (0, request.id))
        self.stake.seat(request, 1)
        return True

    def run(self, adapter: str | None) -> Request:
        request = self.ask(adapter)
        assert self.ready(request) is NOW and self.start(request)
        return request

    def leave(self, request: Request) -> None:
        self.stake.drop(request, 1, trusted=True)
        self.slots.release(request)
        self.slots.recycle()

    def told(self) -> tuple[dict[int, str], dict[int, int]]:
        """Adapters that go to slots with the next plan, and what requests' slots have from then on."""
        parts = self.stake.parts(ROWS)
        if not parts:
            return {}, {}
        (part,) = parts
        assert isinstance(part, Adapters)
        given = dict(zip(part.slots_A.tolist(), part.adapters_A.tolist(), strict=True))
        return {slot: adapter.id for slot, adapter in part.loads}, given


def test_the_device_is_told_once_of_each() -> None:
    room = Room(2)
    first, second, other, none = room.run("a"), room.run("a"), room.run("b"), room.run(None)
    assert room.told() == ({0: "a", 1: "b"}, {first.slot: 0, second.slot: 0, other.slot: 1, none.slot: -1})
    assert room.told() == ({}, {})
    slot = first.slot
    room.leave(first)
    last = room.run(None)
    assert (last.slot, room.told()) == (slot, ({}, {slot: -1})), "whose slot was another's before"


def test_who_waits_for_files_or_a_slot_holds_nobody_up() -> None:
    room = Room(1)
    room.host.answers["slow"] = LATER
    slow, quick = room.ask("slow"), room.ask("quick")
    assert room.ready(slow) is LATER and room.ready(quick) is NOW and room.ready(room.ask(None)) is NOW
    del room.host.answers["slow"]
    assert room.ready(slow) is LATER, "the slot is promised"
    assert room.start(quick)
    room.leave(quick)
    assert room.ready(slow) is NOW


def test_what_cannot_be_read_refuses_its_requests_only() -> None:
    room = Room(1)
    room.host.answers["bad"] = Refusal("it does not fit")
    assert room.ready(room.ask("bad")) == Refusal("it does not fit")
    assert room.ready(room.ask("good")) is NOW


def test_the_one_used_longest_ago_gives_way() -> None:
    room = Room(2)
    for name in ("a", "b", "a"):
        room.leave(room.run(name))
    room.told()
    room.leave(room.run("c"))
    assert room.told()[0] == {1: "c"}
    room.host.asked.clear()
    room.leave(room.run("a"))
    assert (room.told()[0], room.host.asked) == ({}, []), "it is on the device still"
    assert room.stake.gauges()[0] == {"adapter_evictions": 1, "adapter_slots": 2, "adapter_slots_used": 0}


def test_one_that_has_given_way_takes_what_is_only_promised() -> None:
    """Else a request at the head of the line would wait for one behind it."""
    room = Room(1)
    running = room.run("a")
    room.leave(running)  # preempted: it stands in line again
    waiting = room.ask("b")
    assert room.ready(waiting) is NOW
    running.slot = -1
    assert room.start(running), "nobody runs with the slot"
    assert not room.stake.enter(waiting, 1)
    before = room.stake.relief
    room.leave(running)
    assert room.stake.relief > before and room.stake.enter(waiting, 1)


def test_one_that_has_given_way_waits_for_what_is_gone_meanwhile() -> None:
    """Else the step that it starts in would read files."""
    room = Room(1)
    running = room.run("a")
    room.leave(running)
    room.leave(room.run("b"))  # which is on the device in its place
    running.slot = -1
    room.host.answers["a"] = LATER
    assert not room.stake.enter(running, 1) and room.ready(running) is LATER
    room.host.answers["a"] = NOW
    assert room.ready(running) is NOW and room.start(running)


def test_those_that_are_much_in_use_starve_nobody() -> None:
    room = Room(1)
    running = [room.run("a")]
    other = room.ask("b")
    for _ in range(PATIENCE):
        assert room.ready(other) is LATER
        request = room.ask("a")
        assert room.ready(request) is NOW
        running.append(request)
    late = room.ask("a")
    assert room.ready(late) is LATER, "the slot takes no more"
    for request in running:
        room.stake.forget(request)
    assert room.ready(late) is LATER and room.ready(other) is NOW
    room.stake.forget(other)
    assert room.ready(late) is NOW


def test_an_aborted_one_leaves_no_slot_reserved() -> None:
    room = Room(1)
    room.run("a")
    other, late = room.ask("b"), room.ask("a")
    assert room.ready(other) is LATER
    for _ in range(PATIENCE):
        room.ready(room.ask("a"))
    assert room.ready(late) is LATER
    room.stake.forget(other)
    assert room.ready(late) is NOW


def test_books_are_mended() -> None:
    room = Room(2)
    running = [room.run("a"), room.run("b")]
    assert room.stake.audit(running) == 0
    room.stake._places[0].running.clear()
    assert room.stake.audit(running) == 1
    assert room.stake.audit(running[1:]) == 1 and room.stake.audit(running[1:]) == 0


def test_after_a_lost_step_nothing_is_taken_to_be_there() -> None:
    room = Room(1)
    room.leave(room.run("a"))
    room.told()
    room.stake.reset()
    room.run("a")
    assert room.told()[0] == {0: "a"}


ANSWERS = [(NOW, {"loaded": True}), (LATER, {"loaded": False}), (Refusal("no"), {"loaded": False, "error": "no"})]


@pytest.mark.parametrize(("answer", "told"), ANSWERS)
def test_operators_ask_for_one(answer: Ready, told: dict[str, bool | str]) -> None:
    room = Room(1)
    room.host.answers["a"] = answer
    assert room.stake.commands["adapter"](id="a", path="/a") == told


def test_a_burst_is_read_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the host's memory is to hold, and the others when these have been."""
    go_on, reads = threading.Event(), list[str]()

    def read(self: Shelf, adapter: Adapter) -> dict[str, object]:
        reads.append(adapter.id)
        assert go_on.wait(30)
        return {}

    monkeypatch.setattr(Shelf, "_read", read)
    shelf = Shelf(SimpleNamespace(num_slots=1), most=2, dtype=torch.float32)  # type: ignore[arg-type]
    burst = [Adapter(str(number), "/") for number in range(6)]
    assert [shelf.fetched(one) for one in burst] == [LATER] * 6
    assert [shelf.knows(one) for one in burst] == [True, True, False, False, False, False]
    go_on.set()
    for one in burst:
        while shelf.fetched(one) is not NOW:
            shelf.wait(0.05)
        assert len(shelf._here) <= 2
    assert sorted(set(reads)) == [one.id for one in burst]
    shelf.close()
