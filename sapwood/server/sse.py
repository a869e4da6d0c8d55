"""Streams: frames from structs, and a response that sends them without layers in between."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sapwood.server.errors import ClientGone, problem
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News, generate
from sapwood.server.passage import passage
from sapwood.server.turns import start_eagerly

EVENTS = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"

_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass events on as they come
]
_encode = msgspec.json.Encoder().encode


def cut(event: Any, text: str, *, name: str = "") -> tuple[bytes, bytes]:
    """The frame of an event, named or not, up to where `text` stands in it, once and as a whole string, and from there on.

    So a frame with another text is these two around `quoted` text.
    """
    before, after = frame(event, name=name).split(_encode(text))
    return before, after


def quoted(text: str) -> bytes:
    """A string as JSON."""
    return _encode(text)


def frame(event: Any, *, name: str = "") -> bytes:
    """One event: a struct as JSON, and its name if it has one."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + _encode(event) + b"\n\n"


class Script(ABC):
    """How a dialect words a stream. What is given here is OpenAI's way: events without names, and [DONE] behind the last.

    Attributes:
        media: The content type.
    """

    media = EVENTS

    @abstractmethod
    def frames(self, news: list[News]) -> bytes:
        """What news say; b"" for nothing yet."""

    def last(self) -> bytes:
        """What follows the last news."""
        return DONE

    def failed(self, error: bytes) -> bytes:
        """What follows an error, given its body, after which there is nothing more."""
        return b"data: " + error + b"\n\n" + DONE


class EventStream(Response):
    """Streams what a script makes of news.

    The response begins with the first frames, so an error before them has its own status. A later error is an event
    of its own. A client that hangs up ends the choices; one that is slow gets what has come meanwhile in one piece.
    """

    def __init__(self, front: Front, choices: Sequence[Choice], script: Script) -> None:
        self.status_code = 200
        self.background = None
        self._front = front
        self._choices = choices
        self._script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        script, note = self._script, passage(scope, send)
        # What lies between us and the server minds how a response begins, not its bodies.
        send_body: Callable[[Message], Coroutine[Any, Any, None]] = note.send  # type: ignore[assignment]
        headers = [(b"content-type", script.media.encode()), *_HEADERS]

        def write(body: bytes, *, more: bool = True) -> Coroutine[Any, Any, None]:
            message = {"type": "http.response.body", "body": body, "more_body": more}
            return send_body(message) if started else start(message)

        async def start(message: Message) -> None:
            nonlocal started
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(message)

        def hand_on(news: list[News]) -> asyncio.Task[None] | None:
            frames = script.frames(news)
            return start_eagerly(write(frames)) if frames else None

        try:
            await self._front.attended(receive, generate(self._front, self._choices, hand_on))
            tail = script.last()
        except Exception as error:
            if not started:
                raise
            if isinstance(error, ClientGone):
                return
            tail = script.failed(note.error(problem(error)))
        await write(tail, more=False)
