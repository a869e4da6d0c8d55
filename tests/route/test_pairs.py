"""One server reads a prompt and another answers it: who is asked what, and what happens when the first says nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sapwood.base.errors import ConfigError
from sapwood.route.table import checked
from tests.route.mock import Mock, routed, until
from tests.route.test_proxy import CHAT, body, run

PLACE = {"do_remote_prefill": True, "remote_host": "10.0.0.1", "remote_port": 7, "remote_request_id": "t"}
LONG = body(messages=[{"role": "user", "content": "a long question " * 100}], max_tokens=9, min_tokens=3, n=2)


class Reads(Mock):
    """Says where what it has read can be had: in the "body" of its answer, or in a "header"."""

    def __init__(self, name: str, says: str = "body") -> None:
        super().__init__(name)
        self.says = says

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        answer = await super()._answer(request)
        if self.way != "answers" or not asked.get("kv_transfer_params", {}).get("do_remote_decode"):
            return answer
        if self.says == "header":
            return web.json_response({"by": self.name}, headers={"x-sapwood-kv-transfer": json.dumps(PLACE)})
        return web.json_response({"by": self.name, "kv_transfer_params": PLACE if self.says == "body" else None})


def table(*mocks: Mock, **more: Any) -> dict[str, Any]:
    """Those that read have the role."""
    servers = [
        {"url": one.url, "name": one.name, **({"role": "prefill"} if isinstance(one, Reads) else {})} for one in mocks
    ]
    return {"policy": "prefill_decode", "server": servers, **more}


async def ask(client: aiohttp.ClientSession, path: str = CHAT, **what: Any) -> tuple[str, str]:
    """Who answered, and how it was chosen."""
    async with client.post(path, json=LONG | what) as answer:
        said = await answer.text()
        assert answer.status == 200, said
        return answer.headers["x-sapwood-server"], answer.headers["x-sapwood-route"].split("; ")[1]


async def up(*mocks: Mock) -> None:
    for one in mocks:
        await one.start()


@pytest.mark.parametrize("says", ["body", "header"])
@pytest.mark.parametrize("stream", [False, True])
def test_one_reads_and_another_answers(says: str, stream: bool) -> None:
    async def case() -> None:
        a, b, c = Reads("a", says), Mock("b"), Mock("c")
        await up(a, b, c)
        async with routed(a, b, c, table=table(a, b, c)) as (client, router):
            asked = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            who, why = await ask(client, **asked)
            assert who in "bc" and why == "handed"
            (read,), (answered,) = a.bodies, b.bodies + c.bodies
            assert answered == LONG | asked | {"kv_transfer_params": PLACE}
            params = read.pop("kv_transfer_params")
            assert params["do_remote_decode"] and not params["do_remote_prefill"]
            assert read == LONG | {"stream": False, "max_tokens": 1, "min_tokens": 0, "n": 1}
            assert b'prefilled_total{how="read",server="a"} 1.0' in router.metrics.text()
            router.metrics.forget("a")
            assert b"sapwood_route_prefilled_total{" not in router.metrics.text()
            assert not any(one.running for one in router.fleet.replicas.values())

    run(case())


def test_other_dialects() -> None:
    """They say their limits otherwise; what keeps answers is not asked twice."""

    async def case() -> None:
        a, b = Reads("a", "header"), Mock("b")
        await up(a, b)
        async with routed(a, b, table=table(a, b)) as (client, _):
            assert await ask(client, "/v1/messages") == ("b", "handed")
            assert a.bodies[0]["max_tokens"] == 9 and a.bodies[0]["stream"] is False
            assert await ask(client, "/v1/responses") == ("b", "alone")
            assert await ask(client, "/v1/embeddings") == ("b", "alone")
            assert len(a.bodies) == 1

    run(case())


def test_short_prompts_stay_where_they_are_answered() -> None:
    async def case() -> None:
        a, b = Reads("a"), Mock("b")
        await up(a, b)
        async with routed(a, b, table=table(a, b, prefill_from=1000)) as (client, _):
            assert await ask(client) == ("b", "alone") and not a.bodies and b.bodies == [LONG]

    run(case())


@pytest.mark.parametrize("way", ["busy", "broken", "silent", "says nothing"])
def test_who_reads_says_nothing(way: str) -> None:
    async def case() -> None:
        a, b = Reads("a"), Mock("b")
        a.way, a.says = (way, a.says) if way != "says nothing" else ("answers", "")
        await up(a, b)
        async with routed(a, b, table=table(a, b)) as (client, router):
            assert await ask(client) == ("b", "alone") and b.bodies == [LONG]
            assert b'prefilled_total{how="failed",server="a"} 1.0' in router.metrics.text()

    run(case())


def test_who_answers_is_gone() -> None:
    """Another one goes on with what has been read; where nobody else is left, who has read it answers without being told where it is."""

    async def case() -> None:
        a, b, c = Reads("a"), Mock("b"), Mock("c")
        b.way = "silent"
        await up(a, b, c)
        async with routed(a, b, c, table=table(a, b, c)) as (client, _):
            for _ in range(60):  # which of the two is tried first is drawn
                assert await ask(client) == ("c", "handed")
                if b.bodies:
                    break
            assert b.bodies, "it was tried first at times"
            c.way = "silent"
            assert (await ask(client))[0] == "a" and a.bodies[-1] == LONG

    run(case())


def test_what_was_read_is_told_to_servers_of_the_same_model_only() -> None:
    """A name that stands for two models: while those that answer for the first are full, the second does, which has read nothing."""

    async def case() -> None:
        a, b, cloud = Reads("a"), Mock("b"), Mock("cloud", ("c",))
        await up(a, b, cloud)
        made = table(a, b, cloud, model={"fast": {"to": ["m", "c"], "policy": "prefill_decode"}})
        made["server"][1]["max_running"] = 1
        b.way = "waits"
        b.go_on.clear()
        async with routed(a, b, cloud, table=made) as (client, _):
            first = asyncio.ensure_future(ask(client, model="fast"))
            await until(lambda: bool(b.bodies))
            assert (await ask(client, model="fast"))[0] == "cloud"
            assert cloud.bodies == [LONG | {"model": "c"}] and len(a.bodies) == 2
            b.go_on.set()
            assert await first == ("b", "handed")

    run(case())


def test_who_waits_for_those_that_answer_holds_up_nobody_who_may_ask_the_others() -> None:
    async def case() -> None:
        a, b = Reads("a"), Mock("b")
        await up(a, b)
        made = table(a, b, model={"any": {"to": ["m"], "policy": "least_load"}})
        for one in made["server"]:
            one["max_running"] = 1
        b.way = "waits"
        b.go_on.clear()
        async with routed(a, b, table=made) as (client, router):
            first = asyncio.ensure_future(ask(client))
            await until(lambda: bool(b.bodies))
            second = asyncio.ensure_future(ask(client))
            await until(lambda: len(router._line) == 1)
            assert (await ask(client, model="any"))[0] == "a" and not second.done()
            b.go_on.set()
            assert {await first, await second} == {("b", "handed")}

    run(case())


def test_who_is_no_longer_to_read_has_room_at_once() -> None:
    """The client of the prompt that it read has hung up, and another request waits for it."""

    async def case() -> None:
        a, b = Reads("a"), Mock("b")
        await up(a, b)
        made = table(a, b, model={"any": {"to": ["m"], "policy": "least_load"}})
        made["server"][0]["max_running"] = 1
        async with routed(a, b, table=made) as (client, router):
            router._watch._changed = lambda: None  # nobody else looks after those that wait
            a.way = "waits"
            a.go_on.clear()
            reading = asyncio.ensure_future(ask(client))
            await until(lambda: bool(a.bodies))
            router.fleet.replicas["b"].draining = True
            waiting = asyncio.ensure_future(ask(client, model="any"))
            await until(lambda: len(router._line) == 1)
            reading.cancel()
            await until(lambda: not router.fleet.replicas["a"].running or not len(router._line))
            a.go_on.set()
            assert (await waiting)[0] == "a"

    run(case())


@pytest.mark.parametrize(
    ("roles", "fine"), [((None, None), False), (("prefill", "prefill"), False), (("prefill", "decode"), True)]
)
def test_tables_have_both(roles: tuple[str | None, ...], fine: bool) -> None:
    servers = [{"url": f"http://{at}"} | ({"role": role} if role else {}) for at, role in enumerate(roles, 1)]
    for made in ({"policy": "prefill_decode"}, {"model": {"m": {"to": ["x"], "policy": "prefill_decode"}}}):
        if fine:
            assert checked({"server": servers, **made}, "a test").server[0].role == "prefill"
        else:
            with pytest.raises(ConfigError, match='prefill_decode needs a server with role = "prefill"'):
                checked({"server": servers, **made}, "a test")
