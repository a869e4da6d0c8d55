"""What a connection takes of its client, and how it answers HTTP/1.0, by both of uvicorn's readers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sapwood.server import connection
from sapwood.server.connection import Limits
from tests.waiting import SECONDS

Speak = Callable[..., bytes]


async def stream(request: Request) -> Response:
    async def parts() -> object:
        for part in (b"one ", b"two ", b"three"):
            yield part

    return StreamingResponse(parts(), media_type="text/plain")


async def read(request: Request) -> Response:
    return Response(str(len(await request.body())))


@pytest.fixture(params=["httptools", "h11"])
def speak(request: pytest.FixtureRequest) -> Iterator[Speak]:
    """speak(bytes, ...) -> all that the server answers until it closes."""
    pytest.importorskip(request.param)
    made = getattr(connection, f"with_{request.param}")(Limits(head_bytes=4096, seconds=0.5, bytes_per_second=1e6))
    app = Starlette(routes=[Route("/stream", stream), Route("/read", read, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=made, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()

    def ask(*parts: bytes) -> bytes:
        with socket.create_connection(listener.getsockname(), timeout=SECONDS) as client:
            for part in parts:
                client.sendall(part)
            found = b""
            while more := client.recv(65536):
                found += more
            return found

    yield ask
    server.should_exit = True
    thread.join(SECONDS)


def test_http_1_0_gets_no_chunks(speak: Speak) -> None:
    found = speak(b"GET /stream HTTP/1.0\r\n\r\n")
    head, _, body = found.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower() and body == b"one two three"


def test_http_1_1_still_does(speak: Speak) -> None:
    found = speak(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"transfer-encoding: chunked" in found.lower() and found.endswith(b"0\r\n\r\n")


def test_a_body_that_comes_in_parts(speak: Speak) -> None:
    found = speak(b"POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n\r\n", b"abc", b"def")
    assert found.startswith(b"HTTP/1.1 200") and found.endswith(b"6")


def test_headers_have_a_bound(speak: Speak) -> None:
    found = speak(b"GET /stream HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000)
    assert found.startswith(b"HTTP/1.1 431") or found.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("half", [b"GET /stream HT", b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"])
def test_half_a_request_has_a_time(speak: Speak, half: bytes) -> None:
    found = speak(half)
    assert found.startswith(b"HTTP/1.1 408") or not found
