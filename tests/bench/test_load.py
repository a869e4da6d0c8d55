"""Load on a small server whose answers are known: what is sent, what is measured, what is told of errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from sapwood.base.errors import UserError
from sapwood.bench.http import Address, Client, Event, HttpFailed
from sapwood.bench.load import Load, Server, send, warnings
from sapwood.bench.statistics import Stream, serving_figures
from sapwood.bench.traffic import Traffic, arrivals
from tests.bench.server import CompletionServer
from tests.waiting import SECONDS

RANDOM = Traffic("random", input_len=6, output_len=5)
AGENT = Traffic("agent", prefix_len=10, input_len=4, output_len=3, turns=3)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(SECONDS):
            return await main

    return asyncio.run(bounded())


def sent(
    traffic: Traffic, load: Load, *, model: str = "m", options: dict[str, Any] | None = None, **server: Any
) -> tuple[list[Stream], dict[str, str], CompletionServer]:
    async def main() -> tuple[list[Stream], dict[str, str], CompletionServer]:
        async with CompletionServer(**server) as there:
            streams, messages = await send(Server(there.url, model, **(options or {})), traffic, load)
            return streams, messages, there

    found: tuple[list[Stream], dict[str, str], CompletionServer] = run(main())
    return found


CLOSED = Load("closed", 4, 12)


@pytest.mark.parametrize(
    "server",
    [{}, {"chunked": False}, {"split": True}, {"keep_alive": False}, {"pause": 0.001}],
    ids=["chunks", "to the end", "byte by byte", "one each", "paced"],
)
def test_every_request_is_sent_and_counted(server: dict[str, Any]) -> None:
    streams, messages, there = sent(RANDOM, CLOSED, **server)
    assert messages == {}
    assert [(s.error, s.num_prompt, s.num_output, s.num_cached, len(s.times)) for s in streams] == [
        (None, 6, 5, 3, 5)
    ] * 12
    assert all(s.sent <= s.times[0] <= s.times[-1] <= s.ended for s in streams)
    assert sorted(body["prompt"] for body in there.bodies) == sorted(
        turn.prompt for (turn,) in RANDOM.sessions(12, seed=0)
    )
    keeps = there.chunked and there.keep_alive
    assert there.num_connections == (4 if keeps else 12)


def test_what_a_body_says() -> None:
    _, _, there = sent(
        RANDOM, Load("closed", 1, 1), options={"temperature": 0.5, "extra": {"top_k": 3}, "api_key": "k"}
    )
    (body,) = there.bodies
    assert len(body.pop("prompt")) == 6
    assert body == {
        "model": "m",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "ignore_eos": True,
        "top_k": 3,
    }
    assert "POST /v1/completions HTTP/1.1\r\n" in there.headers[0]
    assert "Authorization: Bearer k\r\n" in there.headers[0]


def test_end_of_sequence_may_count() -> None:
    _, _, there = sent(RANDOM, Load("closed", 1, 1), options={"ignore_eos": False})
    assert "ignore_eos" not in there.bodies[0]


def test_chunks_stand_for_tokens_where_the_server_does_not_count() -> None:
    streams, _, _ = sent(RANDOM, CLOSED, usage=False)
    assert {(s.num_prompt, s.num_output) for s in streams} == {(0, 5)}


@pytest.mark.parametrize("ids", [True, False])
def test_an_agent_s_answers_join_its_history(ids: bool) -> None:
    _, _, there = sent(AGENT, Load("closed", 1, 2), ids=ids)
    for first, second, third in (there.bodies[:3], there.bodies[3:]):
        assert [len(body["prompt"]) for body in (first, second, third)] == [14, 21, 28]
        assert second["prompt"][:14] == first["prompt"]
        assert third["prompt"][:21] == second["prompt"]
        if ids:
            assert second["prompt"][14:17] == third["prompt"][21:24] == [100, 101, 102]
        assert [body.get("return_token_ids") for body in (first, second, third)] == [True, True, None]


def test_an_agent_in_words() -> None:
    traffic = Traffic("agent", prefix_len=10, input_len=4, output_len=3, turns=2, as_text=True)
    _, _, there = sent(traffic, Load("closed", 1, 1))
    first, second = (body["prompt"] for body in there.bodies)
    assert second.startswith(f"{first} word word word ")
    assert len(second.split()) == 14 + 3 + 4


@pytest.mark.parametrize(
    ("trouble", "kind", "said"),
    [
        ("status", "HTTP 503", "too much is waiting"),
        ("event", "error in the stream", "it broke"),
        ("drop", "connection closed", "middle of an answer"),
        ("garbage", "not understood", "not HTTP"),
        ("empty", "no tokens", "empty"),
        ("silence", "timeout", "2 s"),
    ],
)
def test_a_failed_request_is_its_own_trouble(trouble: str, kind: str, said: str) -> None:
    streams, messages, _ = sent(RANDOM, CLOSED, trouble={5: trouble}, options={"timeout": 2})
    assert [s.error for s in streams if s.error] == [kind]
    assert len(streams) == 12
    assert said in messages[kind]
    assert serving_figures(streams)["failed"] == 1
    assert all(s.ended >= s.sent for s in streams)


def test_a_failed_turn_ends_its_session() -> None:
    streams, _, _ = sent(AGENT, Load("closed", 1, 2), trouble={1: "status"})
    assert [s.error for s in streams] == [None, "HTTP 503", None, None, None]


def test_nobody_there() -> None:
    streams, messages = run(send(Server("http://127.0.0.1:9", "m"), RANDOM, Load("closed", 2, 3)))
    assert [s.error for s in streams] == ["no connection"] * 3
    assert "127.0.0.1:9" in messages["no connection"]


def test_a_connection_that_was_closed_meanwhile_is_made_again() -> None:
    async def main() -> int:
        async with CompletionServer() as there:
            client = Client(there.url)
            body = b'{"prompt": [1], "max_tokens": 2}'
            await client.stream(body, lambda now, event: None)
            client._idle[0].transport.abort()
            await client.stream(body, lambda now, event: None)
            await client.close()
            return there.num_connections

    assert run(main()) == 2


def test_an_open_loop_waits_for_nobody() -> None:
    silence = dict.fromkeys(range(20), "silence")
    streams, _, _ = sent(RANDOM, Load("open", 500.0, 20), trouble=silence, options={"timeout": 0.8})
    assert serving_figures(streams)["peak_concurrency"] == 20
    times = arrivals(20, 500.0)
    assert all(s.late >= 0 for s in streams)
    due = [s.sent - s.late - streams[0].sent + streams[0].late for s in streams]
    assert due == pytest.approx([time - times[0] for time in times])


def test_a_closed_loop_has_so_many_at_once() -> None:
    streams, _, _ = sent(RANDOM, Load("closed", 3, 12), pause=0.002)
    assert serving_figures(streams)["peak_concurrency"] == 3


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_no_more_is_sent_when_time_is_up(loop: Any) -> None:
    streams, _, _ = sent(RANDOM, Load(loop, 10.0, 1000, max_seconds=0.15), pause=0.01)
    assert 0 < len(streams) < 1000
    assert all(s.error is None for s in streams)


def test_a_busy_client_is_told() -> None:
    assert warnings({"client_cpu": 0.2, "late_ms_p99": 1.0}) == []
    assert "client" in warnings({"client_cpu": 0.95})[0]
    assert "late" in warnings({"client_cpu": 0.2, "late_ms_p99": 50.0})[0]


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000, ""),
        ("http://there/v1/", "there", 80, ""),
        ("https://there/some/path/v1", "there", 443, "/some/path"),
        ("http://[::1]:90", "::1", 90, ""),
    ],
)
def test_addresses(url: str, host: str, port: int, path: str) -> None:
    address = Address(url)
    assert (address.host, address.port, address.path, address.tls is not None) == (
        host, port, path, url.startswith("https"),
    )  # fmt: skip


@pytest.mark.parametrize("url", ["ftp://there", "http://", "http://there:port", "http://there:99999"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UserError, match="--url"):
        Address(url)


def answer(data: list[bytes], handle: Callable[[float, Event], None]) -> Awaitable[None]:
    """Stream one answer made of these pieces, each written on its own; then the connection closes."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            for piece in data:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = Client(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            await client.stream(b"{}", handle)
        finally:
            await client.close()
            server.close()
            await asyncio.sleep(0.02)

    return main()


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_framing() -> None:
    """Several events in a chunk, an event over two chunks, CRLF lines, comments, a chunk extension and a trailer."""
    event = b'data: {"choices": [{"text": "%b"}]}'
    first, second = (
        event % b"a" + b"\n\n" + event % b"b" + b"\r\n\r\n: ping\n\n" + event[:9],
        event[9:] % b"c" + b"\n\n",
    )
    pieces = [b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD[:20], HEAD[20:]]
    pieces += [b"%x;a=b\r\n%b\r\n" % (len(first), first), b"%x\r\n%b\r\n0\r\n" % (len(second), second), b"X: y\r\n\r\n"]
    for parts in (pieces, [b"".join(pieces)]):
        found: list[str | None] = []
        run(answer(parts, lambda now, event, found=found: found.extend(c.text for c in event.choices)))  # type: ignore[misc]
        assert found == ["a", "b", "c"]


def test_a_body_of_known_length_is_over_where_it_ends() -> None:
    body = b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    found: list[Event] = []
    run(answer([head + body[:10], body[10:]], lambda now, event: found.append(event)))
    assert [choice.text for event in found for choice in event.choices] == ["a"]


@pytest.mark.parametrize(
    "data", [HEAD, HEAD + b"5\r\nda", HEAD + b"zz\r\n", HEAD + b"9\r\ndata: {]\n\r\n", b"HTTP/1.1"]
)
def test_answers_that_are_cut_off_or_wrong(data: bytes) -> None:
    with pytest.raises(HttpFailed):
        run(answer([data], lambda now, event: None))
