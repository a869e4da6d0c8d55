"""HTTP to servers, over plain sockets that say exactly what a test wants, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from sapwood.route import wire
from sapwood.route.wire import Address, Gone, Pool

Way = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"POST /x HTTP/1.1\r\nhost: s\r\ncontent-length: 2\r\n\r\n"
LOOPS = ["asyncio", "uvloop"]


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main, 30))


async def heard(reader: asyncio.StreamReader) -> bytes:
    """A request with a body of two bytes."""
    return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)


@contextlib.asynccontextmanager
async def served(way: Way, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Pool, Address]]:
    """A pool, and a server that goes that way with each connection."""

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await way(reader, writer)
        writer.close()

    server = await asyncio.start_server(whole, "127.0.0.1", 0, ssl=tls)
    pool = Pool()
    try:
        yield pool, Address("127.0.0.1", server.sockets[0].getsockname()[1], None)
    finally:
        await pool.close()
        server.close()


def saying(*said: bytes, times: int = 1) -> tuple[Way, list[int]]:
    """Answers each request with that; the list counts connections."""
    connections: list[int] = []

    async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        for _ in range(times):
            await heard(reader)
            connections[-1] += 1
            for piece in said:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

    return way, connections


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("said", "body", "kept"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"], b"hello", True),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", b"llo"], b"hello", True),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", b"2\r\nlo\r\n0\r\n\r\n"], b"hello", True),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nx: 1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], b"", True),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\na"], b"a", False),
        ([b"HTTP/1.1 200 OK\r\n\r\nuntil ", b"the end"], b"until the end", False),
        ([b"HTTP/1.0 200 OK\r\n\r\nold"], b"old", False),
    ],
)  # fmt: skip
def test_an_answer(loop: str, said: list[bytes], body: bytes, kept: bool) -> None:
    async def main() -> None:
        way, connections = saying(*said, times=2 if kept else 1)
        async with served(way) as (pool, address):
            for _ in range(2):
                with await pool.ask(address, HEAD, b"hi") as answer:
                    assert answer.status == 200 and "x" not in answer.headers
                    assert await answer.read() == body
            assert connections == ([2] if kept else [1, 1])

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_what_was_left_unread_is_not_mistaken_for_the_next_answer(loop: str) -> None:
    async def main() -> None:
        way, connections = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"he", times=2)
        async with served(way) as (pool, address):
            for _ in range(2):
                with await pool.ask(address, HEAD, b"hi") as answer:
                    assert answer.status == 200
            assert len(connections) == 2

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_more_than_was_asked_for(loop: str) -> None:
    """A server that says something else behind its answer is not asked again over that connection."""

    async def main() -> None:
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        way, connections = saying(one + one, times=2)
        async with served(way) as (pool, address):
            for _ in range(2):
                with await pool.ask(address, HEAD, b"hi") as answer:
                    assert await answer.read() == b"ok"
            assert len(connections) == 2

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_no_answer(loop: str) -> None:
    async def main() -> None:
        for said in (
            b"",
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nx: ",
            b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 60_000,
        ):
            way, _ = saying(said)
            async with served(way) as (pool, address):
                with pytest.raises(Gone) as found:
                    await pool.ask(address, HEAD, b"hi")
                assert not found.value.at_once
        with pytest.raises(OSError):
            await Pool().ask(address, HEAD, b"hi")  # nobody is there any more

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_name_with_an_address_where_nobody_is(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is taken."""

    async def main() -> None:
        way, _ = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        async with served(way) as (pool, address):
            kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            there = [(socket.AF_INET, *kind, (host, address.port)) for host in ("127.0.0.2", "127.0.0.1")]

            class Resolving:
                def __getattr__(self, name: str) -> Any:
                    return getattr(asyncio.get_running_loop(), name)

                async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
                    return there

            monkeypatch.setattr(pool, "_loop", Resolving())
            with await pool.ask(address._replace(host="both"), HEAD, b"hi") as answer:
                assert await answer.read() == b"ok"

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_one_that_rested_and_was_closed_is_told_apart(loop: str) -> None:
    async def main() -> None:
        closing = asyncio.Event()

        async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await heard(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read(1)  # of the next request, which is not answered
            closing.set()

        async with served(way) as (pool, address):
            with await pool.ask(address, HEAD, b"hi") as answer:
                assert await answer.read() == b"ok"
            with pytest.raises(Gone) as found:
                await pool.ask(address, HEAD, b"hi")
            assert closing.is_set() and found.value.at_once

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_cut_off_in_the_middle(loop: str) -> None:
    async def main() -> None:
        way, _ = saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n")
        async with served(way) as (pool, address):
            with await pool.ask(address, HEAD, b"hi") as answer:
                assert await answer.piece() == b"hel"
                with pytest.raises(Gone):
                    await answer.piece()

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_who_reads_slowly_holds_the_server_back(loop: str) -> None:
    size = 64 << 20

    async def main() -> None:
        through = asyncio.Event()

        async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await heard(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(64):
                writer.write(bytes(1 << 20))
                await writer.drain()
            through.set()

        async with served(way) as (pool, address):
            with await pool.ask(address, HEAD, b"hi") as answer:
                for _ in range(200):
                    await asyncio.sleep(0)
                assert not through.is_set()
                found = 0
                while piece := await answer.piece():
                    found += len(piece)
                assert found == size and through.is_set()

    run(loop, main())


def test_who_says_nothing_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(wire, "_SILENT_SECONDS", 0.05)

    async def main() -> None:
        async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with served(way) as (pool, address):
            with pytest.raises(TimeoutError):
                await pool.ask(address, HEAD, b"hi")

    run("asyncio", main())


def test_one_that_rests_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(wire, "_IDLE_SECONDS", 0.05)

    async def main() -> None:
        closed = asyncio.Event()

        async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await heard(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            closed.set()

        async with served(way) as (pool, address):
            with await pool.ask(address, HEAD, b"hi") as answer:
                assert await answer.read() == b""
            await closed.wait()

    run("asyncio", main())


@pytest.mark.parametrize("loop", LOOPS)
def test_certificates_are_checked(loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server with TLS: by who has signed, and for the name that it is called by."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by openssl, which is not there")
    signed = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 -subj /CN=s -keyout key -out pem"
    subprocess.run(["openssl", *signed.split(), "-addext", "subjectAltName=DNS:right"], check=True, cwd=tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "pem", tmp_path / "key")

    async def main() -> None:
        way, _ = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", times=2)
        async with served(way, tls) as (pool, address):
            with pytest.raises(OSError):
                await pool.ask(address._replace(name="right"), HEAD, b"hi")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pem"))
        async with served(way, tls) as (pool, address):
            for _ in range(2):
                with await pool.ask(address._replace(name="right"), HEAD, b"hi") as answer:
                    assert await answer.read() == b"ok"
            with pytest.raises(OSError):
                await pool.ask(address._replace(name="wrong"), HEAD, b"hi")

    run(loop, main())
