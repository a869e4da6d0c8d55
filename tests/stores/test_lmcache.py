"""Pages in an LMCache server: what is put is there, and one that is gone, mute or wrong costs pages and nothing else."""

from __future__ import annotations

import importlib.util
import socket
import socketserver
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest

from sapwood.base.errors import ConfigError
from sapwood.stores import lmcache
from sapwood.stores.lmcache import LMCacheShelf
from tests.stores.test_shelves import got, name, page
from tests.waiting import eventually


class Imitated(socketserver.ThreadingTCPServer):
    """Does as the server of LMCache 0.5.6 does, with the words of its protocol."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.kept: dict[str, bytes] = {}
        self.mute = False
        self.clients: list[socket.socket] = []
        Thread(target=self.serve_forever, daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        self.clients.append(request)
        return request, address

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        for client in self.clients:
            with suppress(OSError):  # it has gone by itself
                client.shutdown(socket.SHUT_RDWR)


class _Client(socketserver.StreamRequestHandler):
    server: Imitated

    def handle(self) -> None:
        while len(told := self.rfile.read(186)) == 186:
            command, length, *_, key = struct.unpack("9i150s", told)
            (model, *_), name = key.decode().split("@"), key.decode().strip()
            assert model == "sapwood" and name.count("@") == 4
            kept = self.server.kept.get(name)
            if command == 1:
                self.server.kept[name] = self.rfile.read(length)
            elif not self.server.mute:
                good = {2: kept is not None, 3: kept is not None, 5: True}[command]
                told = kept if kept is not None and command == 2 else b""
                self.wfile.write(struct.pack("9i", 200 if good else 400, len(told), *[0] * 7) + told)


class There(NamedTuple):
    port: int
    end: Any


@pytest.fixture(params=["imitated", "real"])
def server(request: pytest.FixtureRequest) -> Iterator[There]:
    if request.param == "imitated":
        with Imitated() as imitated:
            yield There(imitated.server_address[1], imitated.end)
        return
    if importlib.util.find_spec("lmcache") is None:
        pytest.skip("no lmcache")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "lmcache.v1.server", "127.0.0.1", str(port)])
    eventually(lambda: process.poll() is not None or _listens(port))
    yield There(port, process.kill)
    process.kill()
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def shelf_of(port: int) -> LMCacheShelf:
    return LMCacheShelf("127.0.0.1", port, "here")


def test_what_is_put_is_there(server: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmcache, "_TOGETHER", 3)
    shelf, other = shelf_of(server.port), shelf_of(server.port)
    assert all(shelf.put(name(number), page(number)) for number in range(5))
    assert all(got(shelf, number) for number in range(5))  # what is put has no reply
    assert other.has([name(number) for number in range(7)]) == [True] * 5 + [False] * 2 and other.has([]) == []
    assert all(got(other, number) for number in range(5)) and not got(other, 6)
    shelf.close()
    other.close()


def test_a_server_that_is_gone_has_nothing(server: There, caplog: pytest.LogCaptureFixture) -> None:
    shelf = shelf_of(server.port)
    shelf.put(name(0), page(0))
    server.end()
    eventually(lambda: not got(shelf, 0))
    assert not shelf.put(name(1), page(1)) and shelf.has([name(0), name(1)]) == [False, False]
    assert caplog.text.count("not asked for a while") == 1
    shelf.close()


def test_pages_that_are_wrong(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with Imitated() as server:
        shelf = shelf_of(server.server_address[1])
        shelf.put(name(0), page(0))
        assert got(shelf, 0)
        (key,) = server.kept
        server.kept[key] = server.kept[key][:-1] + b"?"
        assert not got(shelf, 0) and "damaged" in caplog.text
        server.kept[key] += b"more"
        assert not shelf.get(name(0), np.zeros_like(page(0))) and "not asked for a while" in caplog.text
        shelf.close()
        monkeypatch.setattr(lmcache, "_SECONDS", 0.05)
        shelf, server.mute = shelf_of(server.server_address[1]), True
        assert shelf.has([name(0)]) == [False]
        shelf.close()
        with pytest.raises(ConfigError, match="--kv-store here does not answer"):
            shelf_of(server.server_address[1])
        server.end()


def test_engines_share_what_one_has_computed(server: There, tmp_path: Path) -> None:
    from tests import models
    from tests.stores.test_engine import PROMPTS, say, started

    model = models.save("llama", tmp_path / "model")
    one, other = (started(model, kv_store=f"lm://127.0.0.1:{server.port}") for _ in range(2))
    cold, before = say(one, PROMPTS)
    warm, after = say(other, PROMPTS)
    assert warm == cold and sum(after) > sum(before)
    assert other.stats().counters["store_hits_lmcache"] > 0
    for engine in (one, other):
        engine.shutdown()
