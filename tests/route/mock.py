"""Servers that answer as they are told, and a router before them, all in one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from aiohttp import web

from sapwood.config.options import ServerConfig
from sapwood.route.app import Router
from sapwood.route.table import checked

PIECES = 3
SECONDS = 30.0  # that anything is waited for at most


class Mock:
    """A server. `way`: "answers", "busy" (503), "broken" (502), "silent" (hangs up), or "cut" (hangs up in the middle of a stream)."""

    def __init__(self, name: str, models: tuple[str, ...] = ("m",)) -> None:
        self.name, self.models, self.way = name, models, "answers"
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.go_on = asyncio.Event()  # streams wait for it behind their first piece
        self.go_on.set()
        self.left = asyncio.Event()  # somebody has hung up
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/models", self._models), web.post("/{path:.*}", self._answer)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = site.name if port else f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.way == "busy":
            return web.json_response({"error": {"message": "full"}}, status=503, headers={"retry-after": "7"})
        if self.way == "broken":
            return web.Response(status=502)
        if self.way == "silent":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if not body.get("stream"):
            return web.json_response({"model": body.get("model"), "by": self.name, "usage": {"total_tokens": 12}})
        return await self._stream(request)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        try:
            for number in range(PIECES):
                await answer.write(f'data: {{"by": "{self.name}", "n": {number}}}\n\n'.encode())
                await self.go_on.wait()
                if self.way == "cut":
                    assert request.transport is not None
                    request.transport.abort()
                    return answer
            await answer.write(b'data: {"usage": {"total_tokens": 30}}\n\ndata: [DONE]\n\n')
        except (ConnectionResetError, asyncio.CancelledError):
            self.left.set()
            raise
        return answer


@contextlib.asynccontextmanager
async def routed(
    *mocks: Mock, table: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[aiohttp.ClientSession, Router]]:
    """A client of a router before these servers, and the router."""
    async with contextlib.AsyncExitStack() as stack:
        for mock in mocks:
            if not mock.url:
                await mock.start()
            stack.push_async_callback(mock.stop)
        servers = [{"url": mock.url, "name": mock.name} for mock in mocks]
        made = Router(checked({"server": servers, **(table or {})}, "a test"), ServerConfig(**options), every=0.05)
        app = await stack.enter_async_context(made.serving())
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield await stack.enter_async_context(client), made


async def until(true: Callable[[], bool]) -> None:
    """Wait until what is asked is so."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
