"""A client that hangs up frees what its request held, on every route that generates."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.conftest import Server
from tests.http.dialects import body_of, generating
from tests.waiting import SECONDS, eventually


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--served-model-name", "tiny", "--drain-timeout", "600")
    yield server
    assert server.stop() == 0, server.output


def pages_in_use(server: Server) -> float:
    """Of the pool: neither free nor evictable. The engine's first report may be on its way still."""
    gauge = re.compile(r'sapwood_pages{group="0",state="(\w+)"} (\S+)')
    found = eventually(lambda: {state: float(count) for state, count in gauge.findall(server.get("/metrics").text)})
    return found["total"] - found["free"] - found["evictable"]


def ask(server: Server, path: str, *, stream: bool) -> socket.socket:
    """A connection that has asked for more than a test has time for."""
    body = json.dumps(body_of(path, "Hello", 2500, stream=stream)).encode()
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=SECONDS)
    connection.sendall(
        b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (path.encode(), len(body), body)
    )
    return connection


def test_on_every_route(server: Server) -> None:
    paths = generating(server.get("/openapi.json").json())
    assert {"/v1/completions", "/v1/chat/completions", "/generate"} <= set(paths)
    eventually(lambda: server.health().status_code == 200)
    before = pages_in_use(server)
    for path in paths:
        for stream in (True, False):
            with ask(server, path, stream=stream) as connection:
                server.wait_until_running(1)
                if stream:
                    assert b" 200 " in connection.makefile("rb").readline(), path
            server.wait_until_running(0)
            assert pages_in_use(server) == before, (path, stream)


def test_by_a_reset(server: Server) -> None:
    """As a client ends that was killed with what it was sent unread."""
    before = pages_in_use(server)
    connection = ask(server, "/v1/completions", stream=True)
    server.wait_until_running(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    server.wait_until_running(0)
    assert pages_in_use(server) == before
