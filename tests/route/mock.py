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
    """A server. `way`: "answers", "busy" (503), "broken" (502), "silent" (hangs up), "cut" (hangs up in the middle of a stream), "waits" (for
    `go_on`, before it answers). Its streams tell their usage if they are asked to."""

    def __init__(self, name: str, models: tuple[str, ...] = ("m",)) -> None:
        self.name, self.models, self.way = name, models, "answers"
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.tokenizes = True
        self.said_of_models: int | None = None  # the status of /v1/models, where that is all it says
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
        if self.said_of_models is not None:
            return web.Response(status=self.said_of_models, text="not now")
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.raw.append(raw)
        body = json.loads(raw) if request.content_type == "application/json" else {}
        self.bodies.append(body)
        if request.path == "/tokenize" and self.way == "answers":
            return self._tokenize(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.way == "busy":
            return await self._refuse(request)
        if self.way == "broken":
            return web.Response(status=502)
        if self.way == "silent":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if self.way == "waits":
            await self.go_on.wait()
        if not body.get("stream"):
            answer = web.json_response({"model": body.get("model"), "by": self.name, "usage": {"total_tokens": 12}})
            if "gzip" in request.headers.get("accept-encoding", ""):
                answer.enable_compression()
            answer.headers.add("set-cookie", "a=1")
            answer.headers.add("set-cookie", "b=2")
            return answer
        return await self._stream(request, usage=bool((body.get("stream_options") or {}).get("include_usage")))

    def _tokenize(self, body: dict[str, Any]) -> web.Response:
        if not self.tokenizes:
            return web.Response(status=404)
        if isinstance(body.get("prompt"), list):
            return web.json_response({"error": {"message": "a prompt is a text"}}, status=400)
        text = body["prompt"] if "prompt" in body else "".join(one["content"] for one in body["messages"])
        return web.json_response({"count": len(text), "max_model_len": 10_000, "tokens": tokens_of(text)})

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        """In two pieces."""
        answer = web.StreamResponse(status=503, headers={"retry-after": "7", "content-type": "application/json"})
        await answer.prepare(request)
        await answer.write(b'{"error": {"mess')
        await asyncio.sleep(0.05)
        await answer.write(b'age": "full"}}')
        await answer.write_eof()
        return answer

    async def _stream(self, request: web.Request, *, usage: bool) -> web.StreamResponse:
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
            told = b'data: {"choices": [], "usage": {"total_tokens": 30}}\n\n' if usage else b""
            await answer.write(told + b"data: [DONE]\n\n")
        except (ConnectionResetError, asyncio.CancelledError):
            self.left.set()
            raise
        return answer


def tokens_of(text: str) -> list[int]:
    """A token for each four letters, as a mock has them."""
    return [int.from_bytes(text[at : at + 4].encode(), "big") % 50_000 for at in range(0, len(text), 4)]


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
        client = aiohttp.ClientSession(
            f"http://127.0.0.1:{runner.addresses[0][1]}", cookie_jar=aiohttp.DummyCookieJar()
        )
        yield await stack.enter_async_context(client), made


async def until(true: Callable[[], bool]) -> None:
    """Wait until what is asked is so."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
