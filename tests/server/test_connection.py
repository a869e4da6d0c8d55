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


POST = b"POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


def test_a_client_that_waits_is_told_to_go_on(speak: Speak) -> None:
    found = speak(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", b"abc")
    assert found.startswith(b"HTTP/1.1 100") and b"HTTP/1.1 200" in found and found.endswith(b"3")


def test_many_headers_are_taken(speak: Speak) -> None:
    many = b"".join(b"x-%d: y\r\n" % number for number in range(300))
    assert speak(POST + many + b"Content-Length: 3\r\n\r\nabc").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "length", [b"Content-Length: 3\r\nContent-Length: 4", b"Content-Length: -1", b"Content-Length: x"]
)
def test_lengths_that_are_none(speak: Speak, length: bytes) -> None:
    found = speak(POST + length + b"\r\n\r\nabcd")
    assert found.startswith(b"HTTP/1.1 400") and b'"error"' in found


def test_a_length_beside_chunks_never_cuts_a_body_elsewhere(speak: Speak) -> None:
    """Refused, or read by its chunks alone (RFC 9112, 6.3): no part of the body becomes a request."""
    head = POST.replace(b"close", b"keep-alive") + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    found = speak(head + b"3\r\nabc\r\n0\r\n\r\n", POST + b"Content-Length: 4\r\n\r\nabcd")
    assert found.startswith(b"HTTP/1.1 400") or (b"\r\n\r\n3" in found and found.endswith(b"4"))


def test_a_connection_goes_on_after_an_error(speak: Speak) -> None:
    wrong = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    found = speak(wrong, POST + b"Content-Length: 4\r\n\r\nabcd")
    assert found.startswith(b"HTTP/1.1 404") and b"HTTP/1.1 200" in found and found.endswith(b"4")


@pytest.mark.parametrize("half", [b"GET /stream HT", b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"])
def test_half_a_request_has_a_time(speak: Speak, half: bytes) -> None:
    found = speak(half)
    assert found.startswith(b"HTTP/1.1 408") or not found
