"""Requests through a router to servers that answer, fail, hang up and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from sapwood.route.fleet import State
from sapwood.route.upstream import retry_after
from tests.route.mock import PIECES, SECONDS, Mock, routed, until

CHAT = "/v1/chat/completions"


def run(case: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await case

    asyncio.run(bounded())


def body(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello " * 100}], **more}


def test_answers_and_refusals_pass_as_they_are_and_say_who_gave_them() -> None:
    async def case() -> None:
        a = Mock("a")
        async with routed(a) as (client, _), client.post(f"{CHAT}?x=1", json=body(), headers={"x-own": "1"}) as answer:
            assert answer.status == 200 and await answer.json() == {
                "model": "m",
                "by": "a",
                "usage": {"total_tokens": 12},
            }
            assert answer.headers["x-sapwood-server"] == "a"
            assert answer.headers["x-sapwood-route"] == "cache_aware; new; attempt 1"
            assert a.headers[0]["x-own"] == "1" and a.bodies[0] == body()

    run(case())


def test_streams_pass_piece_by_piece() -> None:
    async def case() -> None:
        a = Mock("a")
        a.go_on.clear()
        async with routed(a) as (client, _), client.post(CHAT, json=body(stream=True)) as answer:
            first = await answer.content.readuntil(b"\n\n")
            assert first == b'data: {"by": "a", "n": 0}\n\n'  # while the server waits with the rest
            a.go_on.set()
            rest = await answer.content.read()
            assert rest.endswith(b"data: [DONE]\n\n") and rest.count(b'"by"') == PIECES - 1

    run(case())


@pytest.mark.parametrize("way", ["busy", "broken", "silent"])
@pytest.mark.parametrize("stream", [False, True])
def test_another_server_is_asked_while_nothing_has_been_answered(way: str, stream: bool) -> None:
    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        a.way = way
        async with routed(a, b, table={"policy": "round_robin"}) as (client, router):
            for _ in range(4):
                async with client.post(CHAT, json=body(stream=stream)) as answer:
                    assert answer.status == 200 and answer.headers["x-sapwood-server"] == "b"
                    assert b"b" in await answer.read()
            text = router.metrics.text().decode()
            assert f'sapwood_route_failed_total{{server="a",why="{way}"}}' in text
            assert 'sapwood_route_answered_total{server="b",status="200"} 4.0' in text

    run(case())


@pytest.mark.parametrize(
    ("path", "last"),
    [
        (CHAT, b'data: {"error":{"message":"The server was cut off'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"api_error"'),
    ],
)
def test_a_stream_that_is_cut_ends_with_an_error(path: str, last: bytes) -> None:
    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        a.way = b.way = "cut"
        async with routed(a, b) as (client, _), client.post(path, json=body(stream=True)) as answer:
            said = await answer.content.read()
            assert said.startswith(b'data: {"by": "') and last in said
            assert len(a.bodies) + len(b.bodies) == 1  # nobody is asked twice for what was answered in part

    run(case())


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (CHAT, {"error": {"type": "not_found_error", "param": "model", "code": "model_not_found"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "not_found_error"}}),
        ("/api/chat", {"error": "No server has the model 'x'; there are: fast, m."}),
    ],
)
def test_errors_are_in_the_words_of_the_path(path: str, error: dict[str, Any]) -> None:
    async def case() -> None:
        table = {"model": {"fast": {"to": ["m"]}}}
        async with routed(Mock("a"), table=table) as (client, _), client.post(path, json=body("x")) as answer:
            said = await answer.json()
            assert answer.status == 404
            if isinstance(error["error"], dict):
                assert error["error"].items() <= said["error"].items()
                assert "there are: fast, m." in said["error"]["message"]
            else:
                assert said == error

    run(case())


def test_what_all_refuse_is_told_as_the_last_said_it_and_nobody_at_all_is_a_503() -> None:
    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        a.way = b.way = "busy"
        async with routed(a, b) as (client, router):
            async with client.post(CHAT, json=body()) as answer:
                assert answer.status == 503 and answer.headers["retry-after"] == "7"
                assert await answer.json() == {"error": {"message": "full"}}
            for replica in router.fleet.replicas.values():
                replica.draining = True
            async with client.post(CHAT, json=body()) as answer:
                said = await answer.json()
                assert answer.status == 503 and "can be asked now" in said["error"]["message"]
                assert "retry-after" in answer.headers

    run(case())


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("", 1.0), ("soon", 1.0), ("\N{SUPERSCRIPT TWO}", 1.0)])
def test_when_a_server_wants_to_be_asked_again(said: str, seconds: float) -> None:
    assert retry_after({"retry-after": said}) == seconds


def test_a_name_stands_for_the_first_model_that_is_at_hand() -> None:
    async def case() -> None:
        big, small = Mock("big", ("big",)), Mock("small", ("small",))
        async with routed(big, small, table={"model": {"best": {"to": ["big", "small"]}}}) as (client, _):
            async with client.get("/v1/models") as answer:
                names = [one["id"] for one in (await answer.json())["data"]]
            assert names == ["best", "big", "small"]
            async with client.post(CHAT, json=body("best")) as answer:
                assert (await answer.json())["model"] == "big"
            big.way = "silent"
            async with client.post(CHAT, json=body("best")) as answer:
                assert (await answer.json()) == {"model": "small", "by": "small", "usage": {"total_tokens": 12}}
            assert small.bodies[0] == body("small")

    run(case())


def test_conversations_keep_their_server_and_one_that_comes_back_is_asked_again() -> None:
    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        async with routed(a, b) as (client, router):
            messages = [{"role": "system", "content": "be good " * 100}]
            for turn in range(5):
                messages.append({"role": "user", "content": f"question {turn} " * 40})
                async with client.post(CHAT, json={"model": "m", "messages": messages}) as answer:
                    home = answer.headers["x-sapwood-server"]
            first, other = (a, b) if home == "a" else (b, a)
            assert len(first.bodies) == 5 and not other.bodies
            port = int(first.url.rpartition(":")[2])
            await first.stop()
            async with client.post(CHAT, json={"model": "m", "messages": messages}) as answer:
                assert answer.headers["x-sapwood-server"] == other.name
            await until(lambda: router.fleet.replicas[first.name].state is State.GONE)
            await first.start(port)
            await until(lambda: router.fleet.replicas[first.name].state is State.READY)

    run(case())


def test_a_client_that_hangs_up_frees_its_server() -> None:
    async def case() -> None:
        a = Mock("a")
        a.go_on.clear()
        async with routed(a) as (client, router):
            answer = await client.post(CHAT, json=body(stream=True))
            await answer.content.readuntil(b"\n\n")
            assert router.fleet.replicas["a"].running == 1
            answer.close()
            await until(lambda: router.fleet.replicas["a"].running == 0)
            await a.left.wait()

    run(case())


def test_keys_are_the_routers_own_and_servers_have_theirs() -> None:
    async def case() -> None:
        a = Mock("a")
        await a.start()
        table = {"server": [{"url": a.url, "name": "a", "key": "inner"}]}
        async with routed(a, table=table, api_key="outer", admin_api_key="boss") as (client, _):
            async with client.post(CHAT, json=body()) as answer:
                assert answer.status == 401
            async with client.post(CHAT, json=body(), headers={"authorization": "Bearer outer"}) as answer:
                assert answer.status == 200 and a.headers[0]["authorization"] == "Bearer inner"
            async with client.post("/route/drain?server=a", headers={"x-api-key": "outer"}) as answer:
                assert answer.status == 403
            async with client.post("/route/drain?server=a", headers={"x-api-key": "boss"}) as answer:
                assert (await answer.json())["state"] == "draining"
            async with client.post("/route/drain?server=z", headers={"x-api-key": "boss"}) as answer:
                assert answer.status == 404 and "there are: a" in (await answer.json())["error"]["message"]
            async with client.get("/health") as answer:
                assert answer.status == 503
            async with client.post("/route/resume?server=a", headers={"x-api-key": "boss"}) as answer:
                assert (await answer.json())["state"] == "ready"

    run(case())


def test_tenants_have_limits_by_what_answers_used(tmp_path: Path) -> None:
    async def case() -> None:
        keys = tmp_path / "keys.toml"
        keys.write_text('[[keys]]\nname = "t"\nkey = "k"\ntokens_per_minute = 40\n')
        async with routed(Mock("a"), api_keys_file=str(keys)) as (client, _):
            statuses = []
            for stream in (False, True, False):
                async with client.post(CHAT, json=body(stream=stream), headers={"x-api-key": "k"}) as answer:
                    await answer.read()
                    statuses.append(answer.status)
            assert statuses == [200, 200, 429]  # 12 and 30 of 40

    run(case())


def test_a_table_that_changes_is_read_again_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    from sapwood.config.options import ServerConfig
    from sapwood.route.app import Router
    from sapwood.route.table import read

    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        await a.start()
        await b.start()
        path = tmp_path / "table.toml"
        path.write_text(f'[[server]]\nurl = "{a.url}"\nname = "a"\n')
        router = Router(read(path), ServerConfig(), path, every=0.05)
        async with router.serving():
            router.fleet.replicas["a"].running = 1
            path.write_text("nonsense")
            await router.read_again()
            assert list(router.fleet.replicas) == ["a"]
            path.write_text(f'[[server]]\nurl = "{a.url}"\nname = "a"\n[[server]]\nurl = "{b.url}"\nname = "b"\n')
            await until(lambda: len(router.fleet.replicas) == 2)  # it is looked at once a second
            await until(lambda: router.fleet.replicas["b"].models == {"m"})
            assert router.fleet.replicas["a"].running == 1
            path.write_text(f'[[server]]\nurl = "{b.url}"\nname = "b"\n')
            await router.read_again()
            assert list(router.fleet.replicas) == ["b"]
        await a.stop()
        await b.stop()

    run(case())


def test_a_name_stands_for_all_its_addresses() -> None:
    async def case() -> None:
        a = Mock("a")
        await a.start()
        url = a.url.replace("http://127.0.0.1", "dns+http://localhost")
        async with routed(a, table={"server": [{"url": url, "name": "pool"}]}) as (client, router):
            names = [name for name in router.fleet.replicas if "127.0.0.1" in name]
            assert len(names) == 1 and names[0].startswith("pool/")
            async with client.post(CHAT, json=body()) as answer:
                assert answer.status == 200 and answer.headers["x-sapwood-server"] == names[0]
            assert a.headers[-1]["host"] == url.partition("://")[2]  # it is called by its name, at an address

    run(case())


def test_paths_that_are_not_carried_are_told() -> None:
    async def case() -> None:
        async with routed(Mock("a")) as (client, _), client.post("/v1/files", json={}) as answer:
            assert answer.status == 404 and "does not carry /v1/files" in (await answer.json())["error"]["message"]

    run(case())


def test_a_connection_that_is_closed_as_it_is_used_again_is_no_failure() -> None:
    """As servers close those that have rested: one that closes each at its second request answers all the same."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for turn in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            if turn:
                break
            if b"POST" in head:
                bodies.append(await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0])))
            said = b'{"data": [{"id": "m"}]}'
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said)
            )
        writer.transport.abort()

    async def case() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            mock = Mock("m")
            mock.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with routed(mock) as (client, router):
                for _ in range(5):
                    async with client.post(CHAT, json=body()) as answer:
                        assert answer.status == 200
                assert len(bodies) == 5 and router.fleet.replicas["m"].state is State.READY

    run(case())
