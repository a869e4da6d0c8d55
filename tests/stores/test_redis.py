"""Pages in a Redis: what is put is there, and a server that is gone, full or wrong costs pages and nothing else."""

from __future__ import annotations

import re
import shutil
import socketserver
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from sapwood.base.errors import ConfigError
from sapwood.stores import remote
from sapwood.stores.remote import RedisShelf
from tests.stores.test_shelves import got, name, page
from tests.waiting import eventually

redis = pytest.importorskip("redis")


@pytest.fixture(params=["imitated", "real"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Where a Redis is, and how it is stopped."""
    if request.param == "imitated":
        fakeredis = pytest.importorskip("fakeredis")
        there = fakeredis.FakeServer()

        def client(url: str, **options: Any) -> Any:
            return fakeredis.FakeRedis(server=there)

        monkeypatch.setattr(redis.Redis, "from_url", client)
        yield "redis://imitated", lambda: setattr(there, "connected", False)
        return
    if (binary := shutil.which("redis-server") or shutil.which("valkey-server")) is None:
        pytest.skip("no redis-server")
    socket = tmp_path / "socket"
    process = subprocess.Popen([binary, "--port", "0", "--unixsocket", str(socket), "--save", ""], cwd=tmp_path)
    eventually(socket.exists)
    yield f"unix://{socket}", process.kill
    process.kill()
    process.wait()


def test_what_is_put_is_there(server: Any) -> None:
    shelf, other = RedisShelf(server[0], "here"), RedisShelf(server[0], "here")
    assert all(shelf.put(name(number), page(number)) for number in range(5))
    assert other.has([name(number) for number in range(7)]) == [True] * 5 + [False] * 2 and other.has([]) == []
    assert all(got(other, number) for number in range(5)) and not got(other, 6)
    assert not other.get(name(1), np.zeros(7, np.uint8)), "another size is another page"
    other.delete([name(1)])
    assert not got(shelf, 1) and got(shelf, 2)
    shelf.close()
    other.close()


def test_a_damaged_page_is_not_used(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    shelf = RedisShelf(server[0], "here")
    shelf.put(name(0), page(0))
    shelf._client.setrange(remote._PREFIX + name(0), 100, b"something else")
    assert not got(shelf, 0) and "damaged" in caplog.text and shelf.has([name(0)]) == [False]


def test_a_server_that_is_gone_has_nothing(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    shelf = RedisShelf(server[0], "here")
    shelf.put(name(0), page(0))
    server[1]()
    eventually(lambda: not got(shelf, 0))
    assert not shelf.put(name(1), page(1)) and shelf.has([name(0), name(1)]) == [False, False]
    assert caplog.text.count("not asked for a while") == 1, "nobody waits for it again and again"


def test_servers_that_are_none(tmp_path: Path) -> None:
    for url in (f"unix://{tmp_path}/nothing", "http://localhost"):
        with pytest.raises(ConfigError, match="--kv-store there does not answer"):
            RedisShelf(url, "there")


def test_engines_share_what_one_has_computed(server: Any, tmp_path: Path) -> None:
    from tests import models
    from tests.stores.test_engine import PROMPTS, say, started

    model = models.save("llama", tmp_path / "model")
    one, other = (started(model, kv_store=server[0]) for _ in range(2))
    cold, before = say(one, PROMPTS)
    warm, after = say(other, PROMPTS)
    assert warm == cold and sum(after) > sum(before)
    server[1]()
    gone, cached = say(other, [prompt[::-1] for prompt in PROMPTS])
    assert all(gone) and cached[0] == 0
    for engine in (one, other):
        engine.shutdown()


class Mute(socketserver.ThreadingTCPServer):
    """A server that says OK to everything, until it says nothing any more; `asked` are the commands that came since then."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Mute)
        self.mute, self.asked = False, 0
        Thread(target=self.serve_forever, daemon=True).start()


class _Mute(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Mute)
        while data := self.request.recv(1 << 16):
            count = len(re.findall(rb"\*\d+\r\n", data))
            if self.server.mute:
                self.server.asked += count
            else:
                self.request.sendall(b"+OK\r\n" * count)


def test_one_that_says_nothing_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine waits for its answer."""
    monkeypatch.setattr(remote, "_SECONDS", 0.05)
    with Mute() as server:
        shelf = RedisShelf(f"redis://127.0.0.1:{server.server_address[1]}?protocol=2", "here")
        server.mute = True
        assert shelf.has([name(0)]) == [False] and server.asked == 1
        shelf.close()
        server.shutdown()
