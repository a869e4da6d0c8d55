"""Server-sent events: frames from structs, and a response that streams them without layers in between."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sapwood.server.errors import ClientGone, problem
from sapwood.server.front import Front

DONE = b"data: [DONE]\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass events on as they come
]
_encode = msgspec.json.Encoder().encode


def frame(event: Any) -> bytes:
    """One event: a struct as JSON."""
    return b"data: " + _encode(event) + b"\n\n"


class EventStream(Response):
    """Streams what `events` yields (any number of frames at a time), then [DONE].

    The response begins with the first events, so an error before them has its own status. A later error is an event
    of its own. A client that hangs up closes `events`.
    """

    def __init__(self, front: Front, events: AsyncGenerator[bytes]) -> None:
        self.status_code = 200
        self.background = None
        self._front = front
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def pump() -> None:
            nonlocal started
            async with aclosing(self._events) as events:
                async for frames in events:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    await send({"type": "http.response.body", "body": frames, "more_body": True})

        tail = DONE
        try:
            await self._front.attended(receive, pump())
        except Exception as error:
            if not started:
                raise
            if isinstance(error, ClientGone):
                return
            tail = b"data: " + problem(error).encode() + b"\n\n" + DONE
        await send({"type": "http.response.body", "body": tail, "more_body": False})
