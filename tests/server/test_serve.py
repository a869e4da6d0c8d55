"""Against real sockets: the way in, and the way out."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from sapwood.base.errors import ConfigError
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import bind, create_app, run, serve
from sapwood.server.operators import admin_socket
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine
from tests.waiting import SECONDS, within

pytestmark = pytest.mark.anyio

HELLO = {"prompt": "x", "max_tokens": 8, "stream": True}


@pytest.fixture
def config() -> Config:
    return Config(server=ServerConfig(port=0, drain_seconds=30.0))


@asynccontextmanager
async def serving(app: Starlette, config: Config) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """The server's URL and its task, which the test or a signal ends."""
    url = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(app, config, on_ready=url.set_result))
    await asyncio.wait({task, url}, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield await within(url), task
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)
        await within(task)


async def refuse(http: httpx.AsyncClient, url: str) -> None:
    """Wait until the server takes no more requests, which it says to all who ask."""
    deadline = monotonic() + SECONDS
    while (await http.get(f"{url}/ready")).status_code != 503:
        assert monotonic() < deadline
        await asyncio.sleep(0)


async def test_the_official_client(app: Starlette, config: Config, engine: FakeEngine) -> None:
    async with serving(app, config) as (url, _):
        client = AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
        whole = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True
        )
        told = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(told) == whole.choices[0].message.content
        await client.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up(app: Starlette, config: Config, engine: FakeEngine, stream: bool) -> None:
    engine.hold = asyncio.Event()
    async with serving(app, config) as (url, _), httpx.AsyncClient(timeout=SECONDS) as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO | {"stream": stream}))
        await engine.until_running(1)
        call.cancel()
        await engine.until_running(0)
    assert engine.broken_off == 1


SMALL = pytest.mark.parametrize("config", [Config(server=ServerConfig(port=0, max_body_bytes=1000))])


@SMALL
async def test_a_large_body_hears_why(app: Starlette, config: Config) -> None:
    async with serving(app, config) as (url, _), httpx.AsyncClient(timeout=SECONDS) as http:
        reply = await http.post(f"{url}/v1/completions", content=b" " * 3000)
        assert reply.status_code == 413


@SMALL
async def test_a_body_without_end_is_cut_off(app: Starlette, config: Config) -> None:
    async with serving(app, config) as (url, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"1388\r\n%s\r\n" % (b" " * 5000))
        assert b" 413 " in await within(reader.readline())
        await within(reader.read())  # ends because the server closes
        writer.close()


async def test_running_requests_finish_after_sigterm(app: Starlette, config: Config, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    async with serving(app, config) as (url, task), httpx.AsyncClient(timeout=SECONDS) as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO))
        await engine.until_running(1)
        os.kill(os.getpid(), signal.SIGTERM)
        await refuse(http, url)
        late = await http.post(f"{url}/v1/completions", json=HELLO)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")
        assert late.headers["connection"] == "close" and int(late.headers["retry-after"]) >= 1
        assert (await http.get(f"{url}/health")).json()["status"] == "draining"
        assert not task.done() and len(engine.asked) == 1
        engine.hold.set()
        reply = await call
        assert reply.text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in reply.text
        await within(task)


async def test_requests_that_do_not_finish_in_time_are_told(app: Starlette, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    config = Config(server=ServerConfig(port=0, drain_seconds=0.1))
    async with serving(app, config) as (url, task), httpx.AsyncClient(timeout=SECONDS) as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO))
        await engine.until_running(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert "The server is stopping." in (await call).text
        await within(task)
    assert engine.running == 0


async def test_a_second_signal_does_not_wait(app: Starlette, config: Config, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    async with serving(app, config) as (url, task), httpx.AsyncClient(timeout=SECONDS) as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO))
        await engine.until_running(1)
        os.kill(os.getpid(), signal.SIGINT)
        await refuse(http, url)  # the first has been heard, so that the two are not one
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(httpx.TransportError):
            await call
        await within(task)
    assert engine.running == 0


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} .* in use.*--port"):
            bind(Config(server=ServerConfig(port=port)))


def test_addresses_that_cannot_be_listened_on() -> None:
    for server in (
        ServerConfig(host="203.0.113.7", port=0),
        ServerConfig(host="no such host"),
        ServerConfig(port=70000),
    ):
        with pytest.raises(ConfigError):
            bind(Config(server=server))


def test_run_returns_what_the_coroutine_returns() -> None:
    async def main() -> int:
        await asyncio.sleep(0)
        return 42

    assert run(main()) == 42


async def test_the_admin_socket(engine: FakeEngine, text: TextModel, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    config = Config(server=ServerConfig(port=0, api_key="sesam", admin_socket=str(path)))
    app = create_app(engine, text, config, MODEL)
    async with serving(app, config) as (url, _):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        over_it = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://admin")
        async with over_it as operator, httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
            assert (await operator.post("/flush_cache")).status_code == 200
            assert (await operator.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})).status_code == 200
            assert (await client.post("/flush_cache", headers={"x-api-key": "sesam"})).status_code == 403
        with pytest.raises(ConfigError, match="another server listens there"), admin_socket(str(path)):
            raise AssertionError
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="a file that is no socket"), admin_socket(str(path)):
        raise AssertionError
    assert path.read_text() == "mine"
    await app.state.front.close()
