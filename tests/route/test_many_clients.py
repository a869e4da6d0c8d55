"""What one client or one server does is not held against the others; what a table changes is changed."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sapwood.config.options import ServerConfig
from sapwood.route.app import Router
from sapwood.route.ask import Ask
from sapwood.route.paths import CARRIED
from sapwood.route.sizes import estimated
from sapwood.route.table import read
from tests.route.mock import Mock, routed, until
from tests.route.test_context import agent
from tests.route.test_proxy import CHAT, body, run


class Hanging(Mock):
    """Says which models it has only when it may."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.says, self.asked = asyncio.Event(), 0
        self.says.set()

    async def _models(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.says.wait()
        return await super()._models(request)


class Strict(Mock):
    """Says 429 to one of its clients."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") == "Bearer greedy":
            return web.Response(status=429, headers={"retry-after": "20"})
        return await super()._answer(request)


def test_a_server_that_hangs_delays_no_look_at_another_one() -> None:
    async def case() -> None:
        slow, quick = Hanging("slow"), Hanging("quick")
        async with routed(slow, quick) as (_, router):
            slow.says.clear()
            await until(lambda: slow.asked > 1)
            seen = quick.asked
            await until(lambda: quick.asked > seen + 3)
            assert slow.asked == 2  # and nobody looks twice at once
            await quick.stop()
            await until(lambda: router.fleet.replicas["quick"].state.value == "gone")
            slow.says.set()
            await until(lambda: slow.asked > 2)

    run(case())


def test_a_refusal_of_one_client_makes_a_server_busy_for_that_one_alone() -> None:
    async def case() -> None:
        a, b = Strict("a"), Mock("b")
        async with routed(a, b, table={"policy": "round_robin"}) as (client, router):

            async def asked(key: str) -> str:
                async with client.post(CHAT, json=body(), headers={"authorization": f"Bearer {key}"}) as answer:
                    assert answer.status == 200
                    return answer.headers["x-sapwood-server"]

            assert [await asked("greedy") for _ in range(4)] == ["b"] * 4
            assert {await asked("modest") for _ in range(4)} == {"a", "b"}
            text = router.metrics.text().decode()
            assert 'sapwood_route_failed_total{server="a",why="busy"} 1.0' in text  # it was asked only once
            replica = router.fleet.replicas["a"]
            assert not replica.busy() and not any("greedy" in one for one in replica.busy_until)

    run(case())


def test_a_refusal_that_is_about_the_routers_own_key_is_about_all() -> None:
    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        await a.start()
        table = {"server": [{"url": a.url, "name": "a", "key": "greedy"}], "policy": "round_robin"}
        async with routed(a, b, table=table) as (client, router):
            a.way = "busy"
            async with client.post(CHAT, json=body(), headers={"authorization": "Bearer mine"}) as answer:
                assert answer.status == 503
            assert router.fleet.replicas["a"].busy("any other")

    run(case())


def test_bytes_that_wait_are_bounded_and_one_alone_may_be_any_size() -> None:
    async def case() -> None:
        a = Mock("a")
        await a.start()
        a.go_on.clear()
        table = {"server": [{"url": a.url, "name": "a", "max_running": 1}], "queue_bytes": 1000}
        async with routed(a, table=table) as (client, router):
            running = await client.post(CHAT, json=body(stream=True))
            waiting = asyncio.ensure_future(client.post(CHAT, json=body(text="x" * 2000)))
            await until(lambda: len(router._line) == 1)
            async with client.post(CHAT, json=body()) as answer:
                assert answer.status == 429 and "1000 bytes" in (await answer.json())["error"]["message"]
            a.go_on.set()
            await running.read()
            async with await waiting as answer:
                assert answer.status == 200
            assert router._line._bytes == 0

    run(case())


@pytest.mark.parametrize("count", ["estimate", "tokenize"])
def test_histories_are_cut_for_the_model_that_is_tried(count: str) -> None:
    def size(sent: dict[str, Any]) -> int:
        return sum(estimated(json.dumps(one)) for one in sent["messages"])

    async def case() -> None:
        large, small = Mock("large", ("large",)), Mock("small", ("small",))
        table = {
            "model": {"agent": {"to": ["large", "small"]}},
            "context": {"large": {"budget": 100_000}, "small": {"budget": 4000, "count": count}},
        }
        asked = {"model": "agent", "messages": agent(random.Random(3), 60)}
        async with routed(large, small, table=table) as (client, router):
            async with client.post(CHAT, json=asked) as answer:
                assert "x-sapwood-context" not in answer.headers
            assert large.bodies[0]["messages"] == asked["messages"]
            large.way = "broken"
            async with client.post(CHAT, json=asked) as answer:
                assert answer.status == 200 and "tokens" in answer.headers["x-sapwood-context"]
            assert size(small.bodies[-1]) < 5000 < size(asked) and small.bodies[-1]["model"] == "small"
            router.fleet.replicas["large"].alive = False  # the first that can be asked is the one that counts
            async with client.post(CHAT, json=asked) as answer:
                assert "tokens" in answer.headers["x-sapwood-context"]
            assert size(small.bodies[-1]) < 5000

    run(case())


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"])
def test_a_body_is_read_whatever_it_says_it_is(kind: str) -> None:
    async def case() -> None:
        a, b = Mock("a", ("other",)), Mock("b", ("m",))
        async with (
            routed(a, b) as (client, _),
            client.post(CHAT, data=json.dumps(body()), headers={"content-type": kind}) as answer,
        ):
            assert answer.headers["x-sapwood-server"] == "b"

    run(case())
    assert Ask("/x", b"{not json", {"content-type": "text/plain"}).model is None


def test_keys_of_another_table_are_those_that_count(tmp_path: Path) -> None:
    def written(keys: str) -> None:
        (tmp_path / "table.toml").write_text(
            f'api_keys_file = "{tmp_path / keys}"\n[[server]]\nurl = "{a.url}"\nname = "a"\n'
        )

    a = Mock("a")

    async def case() -> None:
        await a.start()
        for name in ("one", "two"):
            (tmp_path / f"{name}.toml").write_text(f'[[keys]]\nname = "{name}"\nkey = "{name}"\n')
        written("one.toml")
        router = Router(read(tmp_path / "table.toml"), ServerConfig(), tmp_path / "table.toml", every=0.05)

        async def statuses() -> list[int]:
            found = []
            for key in ("one", "two"):
                async with client.post(CHAT, json=body(), headers={"authorization": f"Bearer {key}"}) as answer:
                    found.append(answer.status)
            return found

        async with router.serving() as app:
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
                assert await statuses() == [200, 401]
                written("two.toml")
                await router.read_again()
                assert await statuses() == [401, 200]
                written("none.toml")  # which there is not: all stays as it was
                await router.read_again()
                assert await statuses() == [401, 200]
            await runner.cleanup()
        assert all("authorization" not in one for one in a.headers)
        await a.stop()

    run(case())


def test_servers_that_are_gone_are_counted_as_one(tmp_path: Path) -> None:
    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        async with routed(a, b, table={"policy": "round_robin"}) as (client, router):
            for _ in range(2):
                async with client.post(CHAT, json=body()) as answer:
                    assert answer.status == 200
            a.go_on.clear()
            late = await client.post(CHAT, json=body(stream=True))
            path = tmp_path / "table.toml"
            path.write_text(f'[[server]]\nurl = "{b.url}"\nname = "b"\n')
            router._watch._path = path
            assert 'server="a"' in router.metrics.text().decode()
            await router.read_again()
            a.go_on.set()
            await late.read()
            await until(lambda: 'answered_total{server="gone",status="200"} 1.0' in router.metrics.text().decode())
            text = router.metrics.text().decode()
            assert 'server="a"' not in text and 'server="b"' in text

    run(case())


def test_what_servers_of_ours_answer_from_a_body_alone_is_carried() -> None:
    assert {"/embed", "/v1/score", "/v1/apply", "/pooling", "/api/embed", "/v1/audio/translations"} <= set(CARRIED)
    assert len(set(CARRIED)) == len(CARRIED)
