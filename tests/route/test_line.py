"""Who waits while all servers have as much as they may, and in which order they go."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import LimitReached
from sapwood.route.fleet import Fleet
from sapwood.route.line import Line, Waiter
from sapwood.route.metrics import Metrics
from sapwood.route.table import checked
from tests.route.mock import Mock, routed, until
from tests.route.test_proxy import CHAT, body, run


class Rooms:
    """Rooms of some kinds, each of which so many may be in at once."""

    def __init__(self, **room: int) -> None:
        self.room = room
        self.went: list[tuple[str, str]] = []
        self.line: Line[str] = Line(Metrics(Fleet(checked({"server": [{"url": "http://a"}]}, ""))))

    def wait(
        self, tenant: str, kind: str, cost: float = 100.0, weight: float = 1.0, **bounds: Any
    ) -> asyncio.Task[str]:
        def take() -> str:
            assert self.room[kind] > 0
            self.room[kind] -= 1
            self.went.append((tenant, kind))
            return kind

        waiter: Waiter[str] = Waiter(kind, cost, lambda: self.room[kind] > 0, take)
        given = {"most": 1000, "most_bytes": 1 << 20, "seconds": 30.0} | bounds
        return asyncio.ensure_future(self.line.wait(tenant, weight, waiter, undo=self.leave, **given))

    def leave(self, kind: str) -> None:
        self.room[kind] += 1
        self.line.pump()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def told(case: Callable[[], Any]) -> None:
    run(case())


def test_tenants_take_turns_by_weight_and_by_what_their_requests_cost() -> None:
    async def case() -> None:
        rooms = Rooms(m=0)
        tasks = [rooms.wait("many", "m") for _ in range(400)]
        tasks += [rooms.wait("heavy", "m", cost=300.0) for _ in range(100)]
        tasks += [rooms.wait("twice", "m", weight=2.0) for _ in range(400)]
        await settled()
        for _ in range(300):
            rooms.leave("m")
        took = Counter(tenant for tenant, _ in rooms.went)
        assert took["many"] == pytest.approx(90, abs=25) and took["twice"] == pytest.approx(180, abs=25)
        assert took["heavy"] * 300 == pytest.approx(took["many"] * 100, rel=0.4)
        rooms.went.clear()
        late = rooms.wait("late", "m")  # who comes later waits for a round, not for all
        await settled()
        for _ in range(60):
            rooms.leave("m")
        assert ("late", "m") in rooms.went and await late == "m"
        for task in tasks:
            task.cancel()
        await settled()
        assert len(rooms.line) == 0

    told(case)


def test_nobody_waits_for_what_others_wait_for() -> None:
    async def case() -> None:
        rooms = Rooms(full=0, free=2)
        first = rooms.wait("t", "full")
        second, third, fourth = (rooms.wait("t", "free") for _ in range(3))
        await settled()
        assert (second.done(), third.done(), fourth.done(), first.done()) == (True, True, False, False)
        rooms.leave("full")
        await settled()
        assert first.done() and not fourth.done()
        fourth.cancel()
        await settled()
        assert len(rooms.line) == 0

    told(case)


def test_too_many_and_too_long_are_refused_and_say_when_to_try_again() -> None:
    async def case() -> None:
        rooms = Rooms(m=0, free=1)
        first = rooms.wait("t", "m", most=1)
        await settled()
        with pytest.raises(LimitReached, match=r"1 requests are waiting .* Try again in") as full:
            await rooms.wait("u", "m", most=1)
        assert full.value.status == 429 and full.value.retry_after == 1.0
        assert await rooms.wait("u", "free", most=1) == "free"  # whoever need not wait is not too many
        with pytest.raises(LimitReached, match=r"No server had room for 0.01 s"):
            await rooms.wait("u", "m", seconds=0.01)
        assert len(rooms.line) == 1
        rooms.leave("m")
        assert await first == "m" and len(rooms.line) == 0

    told(case)


def test_who_goes_away_in_the_moment_of_their_turn_gives_it_back() -> None:
    async def case() -> None:
        rooms = Rooms(m=0)
        first, second = rooms.wait("t", "m"), rooms.wait("t", "m")
        await settled()
        rooms.leave("m")
        first.cancel()  # it has its turn, and has not heard of it
        await settled()
        assert first.cancelled() and await second == "m" and rooms.room == {"m": 0}

    told(case)


def test_who_has_gone_and_has_not_left_yet_is_passed_over() -> None:
    async def case() -> None:
        rooms = Rooms(m=0)
        first, second = rooms.wait("t", "m"), rooms.wait("u", "m")
        await settled()
        first.cancel()
        rooms.leave("m")  # before the one that was cancelled runs again
        assert rooms.went == [("u", "m")] and await second == "m"
        await settled()
        assert first.cancelled() and len(rooms.line) == 0 and rooms.room == {"m": 0}

    told(case)


def test_turns_are_those_of_rounds_that_are_walked() -> None:
    """The counted rounds against a slow twin that walks them."""

    async def case() -> None:
        rng = random.Random(1)
        for _ in range(30):
            rooms = Rooms(m=0)
            weights = {name: rng.choice([2**-7, 0.5, 1.0, 3.0]) for name in "abcd"}
            asked = {name: [rng.choice([1.0, 500.0, 5000.0, 40_000.0]) for _ in range(8)] for name in weights}
            tasks = []
            for name, costs in asked.items():
                tasks += [rooms.wait(name, "m", cost, weights[name]) for cost in costs]
            await settled()
            for _ in range(32):
                rooms.leave("m")
            await asyncio.gather(*tasks)
            assert [name for name, _ in rooms.went] == walked(weights, asked)

    told(case)


def walked(weights: dict[str, float], asked: dict[str, list[float]]) -> list[str]:
    ring, has, went = deque(weights), dict.fromkeys(weights, 0.0), []
    left = {name: deque(costs) for name, costs in asked.items()}
    while ring:
        name = ring.popleft()
        has[name] += 1024.0 * weights[name]
        while left[name] and has[name] >= left[name][0]:
            has[name] -= left[name].popleft()
            went.append(name)
        if left[name]:
            ring.append(name)
    return went


def test_requests_wait_for_a_server_with_room_and_tenants_share_it(tmp_path: Path) -> None:
    async def case() -> None:
        keys, a = tmp_path / "keys.toml", Mock("a")
        keys.write_text('[[keys]]\nname = "s"\nkey = "s"\n[[keys]]\nname = "t"\nkey = "t"\n')
        await a.start()
        a.way = "waits"
        a.go_on.clear()
        table = {"server": [{"url": a.url, "name": "a", "max_running": 2}], "queue": 6}
        async with routed(a, table=table, api_keys_file=str(keys)) as (client, router):

            async def ask(key: str) -> tuple[int, str]:
                async with client.post(CHAT, json=body(max_tokens=900), headers={"x-api-key": key}) as answer:
                    order.append(key)
                    return answer.status, answer.headers.get("retry-after", "")

            order: list[str] = []
            many = [asyncio.ensure_future(ask("s")) for _ in range(7)]
            await until(lambda: len(router._line) == 5)
            one = asyncio.ensure_future(ask("t"))
            await until(lambda: len(router._line) == 6)
            assert len(a.bodies) == 2 and router.fleet.replicas["a"].running == 2
            assert await ask("t") == (429, "1")
            order.clear()
            text = router.metrics.text().decode()
            assert "sapwood_route_waiting 6.0" in text and 'sapwood_route_turned_away_total{why="full"} 1.0' in text
            a.go_on.set()
            assert [status for status, _ in await asyncio.gather(*many, one)] == [200] * 8
            assert "t" in order[:5]  # the other one's line is not before it
            assert router.fleet.replicas["a"].running == 0 and len(router._line) == 0
            assert "sapwood_route_waited_seconds_count 6.0" in router.metrics.text().decode()

    run(case())


def test_who_waits_for_a_server_that_goes_is_told() -> None:
    async def case() -> None:
        a = Mock("a")
        await a.start()
        a.go_on.clear()
        table = {"server": [{"url": a.url, "name": "a", "max_running": 1}]}
        async with routed(a, table=table) as (client, router):
            running = await client.post(CHAT, json=body(stream=True))
            waiting = asyncio.ensure_future(client.post(CHAT, json=body()))
            await until(lambda: len(router._line) == 1)
            async with client.post("/v1/embeddings", json={"model": "x", "input": "y"}) as answer:
                assert answer.status == 404  # which waits for nobody
            router.fleet.replicas["a"].draining = True
            async with await waiting as answer:
                assert answer.status == 503 and "can be asked now" in (await answer.json())["error"]["message"]
            running.close()

    run(case())


def test_one_that_waits_and_hangs_up_is_not_sent() -> None:
    async def case() -> None:
        a = Mock("a")
        await a.start()
        a.go_on.clear()
        table = {"server": [{"url": a.url, "name": "a", "max_running": 1}]}
        async with routed(a, table=table) as (client, router):
            running = await client.post(CHAT, json=body(stream=True))
            waiting = asyncio.ensure_future(client.post(CHAT, json=body()))
            await until(lambda: len(router._line) == 1)
            waiting.cancel()
            await until(lambda: len(router._line) == 0)
            a.go_on.set()
            await running.read()
            await until(lambda: router.fleet.replicas["a"].running == 0)
            assert len(a.bodies) == 1

    run(case())
