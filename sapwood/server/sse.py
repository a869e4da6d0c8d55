"""Server-sent events: frames from structs, and a response that streams them without layers in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sapwood.server.errors import ClientGone, problem
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News, generate
from sapwood.server.turns import start_eagerly

DONE = b"data: [DONE]\n\n"
SEND = "sapwood.send"  # key of a scope: the server's own `send`, without the layers around the routes

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass events on as they come
]
_encode = msgspec.json.Encoder().encode


def cut(event: Any, text: str) -> tuple[bytes, bytes]:
    """The frame of an event up to where `text` stands in it, once and as a whole string, and from there on.

    So a frame with another text is these two around `quoted` text.
    """
    before, after = frame(event).split(_encode(text))
    return before, after


def quoted(text: str) -> bytes:
    """A string as JSON."""
    return _encode(text)


def frame(event: Any) -> bytes:
    """One event: a struct as JSON."""
    return b"data: " + _encode(event) + b"\n\n"


class EventStream(Response):
    """Streams what `frames` makes of news (none or any number of frames), then what `last` has to say, then [DONE].

    The response begins with the first frames, so an error before them has its own status. A later error is an event
    of its own. A client that hangs up ends the choices; one that is slow gets what has come meanwhile in one piece.
    """

    def __init__(
        self,
        front: Front,
        choices: Sequence[Choice],
        frames: Callable[[list[News]], bytes],
        last: Callable[[], bytes] = bytes,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._front = front
        self._choices = choices
        self._frames = frames
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        # What lies between us and the server minds how a response begins, not its bodies.
        send_body = scope.get(SEND, send)

        def write(body: bytes, *, more: bool = True) -> Coroutine[Any, Any, None]:
            message = {"type": "http.response.body", "body": body, "more_body": more}
            return send_body(message) if started else start(message)

        async def start(message: Message) -> None:
            nonlocal started
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send(message)

        def hand_on(news: list[News]) -> asyncio.Task[None] | None:
            frames = self._frames(news)
            return start_eagerly(write(frames)) if frames else None

        try:
            await self._front.attended(receive, generate(self._front, self._choices, hand_on))
            tail = self._last() + DONE
        except Exception as error:
            if not started:
                raise
            if isinstance(error, ClientGone):
                return
            tail = b"data: " + problem(error).encode() + b"\n\n" + DONE
        await write(tail, more=False)
