"""A crowd waits in line, and coroutines that need not wait run at once."""

from __future__ import annotations

import asyncio

import pytest

from sapwood.server import turns as room
from sapwood.server.turns import Turns, start_eagerly
from tests.waiting import within

pytestmark = pytest.mark.anyio


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(room, "perf_counter", self)

    def __call__(self) -> float:
        self.now += 1e-7
        return self.now


async def test_alone_nobody_waits() -> None:
    turns = Turns()
    waiting = turns()
    with pytest.raises(StopIteration):
        waiting.send(None)  # it ends without a wait


async def test_a_crowd_goes_in_order_and_lets_others_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = Clock(monkeypatch), Turns()
    served: list[int] = []
    batches: list[int] = []  # how many were served by each pass of the loop

    async def request(number: int) -> None:
        await turns()
        served.append(number)
        clock.now += room.TURN_SECONDS / 4

    crowd = [asyncio.create_task(request(number)) for number in range(200)]
    while len(served) < 200:
        await asyncio.sleep(0)  # as the news of the engine would
        batches.append(len(served))
    await asyncio.gather(*crowd)
    sizes = [after - before for before, after in zip([0, *batches], batches, strict=False)]
    assert served == [*range(200)]
    assert max(sizes) <= 4, "no more in a pass than the time for it allows"
    assert sum(size >= 3 for size in sizes) > 40, "and not much less"


async def test_one_goes_at_a_time_if_each_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = Clock(monkeypatch), Turns()
    served = 0

    async def request() -> None:
        nonlocal served
        await turns()
        served += 1
        clock.now += 10 * room.TURN_SECONDS

    crowd = [asyncio.create_task(request()) for _ in range(20)]
    while served < 20:
        before = served
        await asyncio.sleep(0)
        assert served <= before + 1
    await asyncio.gather(*crowd)


async def test_who_leaves_the_line_holds_up_nobody() -> None:
    turns = Turns()
    crowd = [asyncio.create_task(turns()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in crowd[5:45]:
        task.cancel()
    done = await within(asyncio.gather(*crowd, return_exceptions=True))
    assert all(isinstance(result, asyncio.CancelledError) for result in done[10:45])
    assert not any(done[45:])
    await within(turns())


async def test_begin_runs_at_once_what_need_not_wait() -> None:
    done = []

    async def work() -> None:
        done.append("work")

    assert start_eagerly(work()) is None
    assert done == ["work"]

    async def broken() -> None:
        raise KeyError("at once")

    with pytest.raises(KeyError):
        start_eagerly(broken())


async def test_begin_goes_on_in_a_task_where_it_has_to_wait() -> None:
    gate, second = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        done.append("begun")
        await gate.wait()
        done.append("half")
        await asyncio.sleep(0)
        await second.wait()
        done.append("over")

    task = start_eagerly(work())
    assert task is not None and done == ["begun"]
    gate.set()
    second.set()
    await within(task)
    assert done == ["begun", "half", "over"]


async def test_begin_passes_on_what_ends_the_work() -> None:
    gate = asyncio.Event()
    cleaned: list[str] = []

    async def work(error: Exception | None) -> None:
        try:
            await gate.wait()
            if error is not None:
                raise error
        finally:
            cleaned.append("cleaned")

    cancelled, failing = start_eagerly(work(None)), start_eagerly(work(KeyError("later")))
    assert cancelled is not None and failing is not None
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert cleaned == ["cleaned"]
    gate.set()
    with pytest.raises(KeyError, match="later"):
        await failing
    assert cleaned == ["cleaned"] * 2
