"""Two real servers behind a router: sessions find their cache, a router that has just begun knows what they have, and one of them is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sapwood.config.options import ServerConfig
from sapwood.route.app import Router
from sapwood.route.fleet import State
from sapwood.route.table import checked
from tests.http.conftest import Server
from tests.waiting import SECONDS

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
SESSIONS, TURNS = 5, 4


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Server, dict[str, Any]]]]:
    made: list[tuple[Server, dict[str, Any]]] = []
    for name in ("one", "other"):
        folder = tmp_path_factory.mktemp(name)
        told = {"endpoint": f"ipc://{folder}/pub", "replay_endpoint": f"ipc://{folder}/again"}
        flags = ["--kv-cache-memory", "64M", "--served-model-name", "tiny", "--kv-events-config", json.dumps(told)]
        server = Server(tiny_model, *flags)
        events = {"events": told["endpoint"], "events_replay": told["replay_endpoint"]}
        made.append((server, {"url": server.url, "name": name} | events))
    yield made
    for server, _ in made:
        server.kill()


@contextlib.asynccontextmanager
async def routed(policy: str, servers: list[dict[str, Any]]) -> AsyncIterator[tuple[aiohttp.ClientSession, Router]]:
    router = Router(checked({"policy": policy, "server": servers}, "a test"), ServerConfig(), every=0.2)
    async with router.serving() as app:
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            yield client, router
        await runner.cleanup()


def opening(kind: str, session: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"{kind} {session} is told what to do at length. " * 25}]


async def say(client: aiohttp.ClientSession, messages: list[dict[str, str]], **more: Any) -> tuple[Any, Any]:
    """The answer's usage and headers."""
    asked = {"model": "tiny", "messages": messages, "max_tokens": 8, "ignore_eos": True, **more}
    async with client.post(CHAT, json=asked) as answer:
        said = await answer.json()
        assert answer.status == 200, said
        messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"] or ""})
        return said["usage"], answer.headers


async def cached_by(policy: str, kind: str, servers: list[dict[str, Any]]) -> tuple[int, int]:
    """Tokens of agents' prompts, and those of them that were cached, when sessions take turns."""
    asked = cached = 0
    sessions = [opening(kind, number) for number in range(SESSIONS)]
    async with routed(policy, [{"url": one["url"], "name": one["name"]} for one in servers]) as (client, _):
        for turn in range(TURNS):
            for messages in sessions:
                messages.append({"role": "user", "content": f"turn {turn}: what now? " * 4})
                usage, _ = await say(client, messages)
                asked += usage["prompt_tokens"]
                cached += usage["prompt_tokens_details"]["cached_tokens"]
    return asked, cached


def run(case: Any) -> None:
    asyncio.run(asyncio.wait_for(case, SECONDS))


def test_sessions_find_their_cache(pair: list[tuple[Server, dict[str, Any]]]) -> None:
    async def case() -> None:
        servers = [told for _, told in pair]
        by_turns, kept = (
            await cached_by("round_robin", "worker", servers),
            await cached_by("cache_aware", "agent", servers),
        )
        assert kept[1] > 0.7 * kept[0]  # all but what is new in each turn
        assert kept[1] / kept[0] > 1.15 * by_turns[1] / by_turns[0]

    run(case())


def test_a_router_that_has_just_begun_knows_what_they_have(pair: list[tuple[Server, dict[str, Any]]]) -> None:
    async def case() -> None:
        servers = [told for _, told in pair]
        messages = opening("a stranger", 7)
        async with aiohttp.ClientSession(servers[1]["url"]) as alone:
            await say(alone, list(messages))  # by another way
        async with routed("cache_aware", servers) as (client, router):
            async with asyncio.timeout(SECONDS):
                while not all(router._index.whole(told["name"]) for told in servers):  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.02)
            usage, headers = await say(client, messages)
            assert headers["x-sapwood-route"] == "cache_aware; held; attempt 1"
            assert headers["x-sapwood-server"] == "other"
            assert usage["prompt_tokens_details"]["cached_tokens"] > 0.9 * usage["prompt_tokens"]

    run(case())


def test_one_of_them_is_killed(pair: list[tuple[Server, dict[str, Any]]]) -> None:
    """Its streams end with an error; whoever is asked for then is asked of the other."""

    async def case() -> None:
        (first, one), (_, other) = pair
        async with routed("session", [one, other]) as (client, router):
            for session in range(50):
                asked = {"model": "tiny", "prompt": "x" * 40, "max_tokens": 3000, "ignore_eos": True, "stream": True}
                stream = await client.post("/v1/completions", json=asked, headers={"x-session-id": str(session)})
                if stream.headers["x-sapwood-server"] == "one":
                    break
                stream.close()
            await stream.content.readuntil(b"\n\n")
            first.process.kill()
            said = await stream.content.read()
            assert b"The server was cut off in the middle of the answer" in said and b"[DONE]" not in said
            for _ in range(4):
                messages = [{"role": "user", "content": "hello"}]
                _, headers = await say(client, messages, user=str(session))
                assert headers["x-sapwood-server"] == "other"
            async with asyncio.timeout(SECONDS):
                while router.fleet.replicas["one"].state is not State.GONE:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.05)
            assert router.fleet.replicas["other"].running == 0

    run(case())
