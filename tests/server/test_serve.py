"""Against real sockets: the way in, and the way out."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from sapwood.base.errors import ConfigError
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import bind, run, serve
from tests.server.fakes import MODEL, FakeEngine

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
    await asyncio.wait({task, url}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield await asyncio.wait_for(url, 1), task
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 20)


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
    async with serving(app, config) as (url, _), httpx.AsyncClient() as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO | {"stream": stream}))
        while not engine.running:
            await asyncio.sleep(0.01)
        call.cancel()
        while engine.running:
            await asyncio.sleep(0.01)
    assert engine.broken_off == 1


async def test_a_body_without_end_is_refused(app: Starlette, engine: FakeEngine, config: Config) -> None:
    small = replace(config.server, max_body_bytes=1000)
    app.state.front.config = replace(config, server=small)

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 100

    async with serving(app, config) as (url, _), httpx.AsyncClient(timeout=10) as http:
        with pytest.raises(httpx.TransportError):  # cut off while sending; small bodies hear 413
            for _ in range(50):
                reply = await http.post(f"{url}/v1/completions", content=body())
                assert reply.status_code == 413
                raise httpx.WriteError("answered before it was cut off")


async def test_running_requests_finish_after_sigterm(app: Starlette, config: Config, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    async with serving(app, config) as (url, task), httpx.AsyncClient() as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO))
        while not engine.running:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            for _ in range(500):  # the port closes within a moment
                await asyncio.sleep(0.02)
                async with httpx.AsyncClient() as other:
                    await other.get(f"{url}/health")
        assert not task.done()
        engine.hold.set()
        reply = await call
        assert reply.text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in reply.text
        await asyncio.wait_for(task, 20)


async def test_requests_that_do_not_finish_in_time_are_told(app: Starlette, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    config = Config(server=ServerConfig(port=0, drain_seconds=0.1))
    async with serving(app, config) as (url, task), httpx.AsyncClient() as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO))
        while not engine.running:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        assert "The server is stopping." in (await call).text
        await asyncio.wait_for(task, 20)
    assert engine.running == 0


async def test_a_second_signal_does_not_wait(app: Starlette, config: Config, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    async with serving(app, config) as (url, task), httpx.AsyncClient() as http:
        call = asyncio.create_task(http.post(f"{url}/v1/completions", json=HELLO))
        while not engine.running:
            await asyncio.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.05)
        with pytest.raises(httpx.TransportError):
            await call
        await asyncio.wait_for(task, 20)
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
