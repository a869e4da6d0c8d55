"""Requests from within the server: the same routes, without the network and the gate."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Scope

from sapwood.base.errors import SapwoodError
from sapwood.server.errors import ClientGone, problem
from sapwood.server.front import Front
from sapwood.server.openai.batches.lines import Line, LineAnswer, LineResult, result_of
from sapwood.server.passage import passage

_LATER = (429, 503, 529)


class Inside:
    """Asks routes for answers."""

    def __init__(self, front: Front, routes: Sequence[Route]) -> None:
        handled = (SapwoodError, HTTPException, ClientGone)
        self._front = front
        self._app = Starlette(routes=list(routes), exception_handlers=dict.fromkeys(handled, _handle))

    async def __call__(self, path: str, body: bytes, *, caller: str, request_id: str) -> tuple[int, float, bytes]:
        """The status, after how many seconds to try again where it says so (else 0), and the body. Cancelling ends it all."""
        gone = asyncio.get_running_loop().create_future()
        left = [body]
        status, wait, parts = 500, 0.0, []

        async def receive() -> Message:
            if left:
                return {"type": "http.request", "body": left.pop(), "more_body": False}
            await gone
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status, wait
            if message["type"] == "http.response.start":
                status = message["status"]
                wait = float(Headers(raw=message["headers"]).get("retry-after", "0"))
            else:
                parts.append(message.get("body", b""))

        scope: Scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
            "server": None, "client": None, "root_path": "",
        }  # fmt: skip
        note = passage(scope, send)
        note.request_id = request_id
        self._front.deadlines.begin(Headers(scope=scope))
        try:
            note.account = self._front.guard.named(caller)
            note.account.count()
            with self._front.serving(note):
                await self._app(scope, receive, send)
        except Exception as error:
            told = problem(error)
            return told.status, float(told.headers.get("retry-after", "0")), note.error(told)
        return status, wait, b"".join(parts)


async def answer_to(ask: Inside, line: Line, *, caller: str = "", **fields: Any) -> LineResult | float:
    """The result of a line; where the engine cannot take it now, the seconds after which to try again, 0 if nobody knows.

    `fields` are for bodies that do not have them.
    """
    request_id = uuid.uuid4().hex
    body = msgspec.json.encode(fields | line.body)
    status, wait, raw = await ask(line.url, body, caller=caller, request_id=request_id)
    if status in _LATER:
        return wait
    return result_of(line, LineAnswer(status, request_id, msgspec.Raw(raw)))


async def _handle(request: Request, error: Exception) -> Response:
    return passage(request.scope, request._send).response(problem(error))
