"""One connection of uvicorn's, with what it leaves open: a bound on a request's head, the time that one may take to
arrive, errors in the API's shape, and answers to HTTP/1.0.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sapwood.base.errors import RequestError
from sapwood.server.errors import openai_envelope, problem

if TYPE_CHECKING:
    _Protocol = H11Protocol
else:
    _Protocol = object


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may take.

    Attributes:
        head_bytes: Most bytes of a request line with its headers, and of what stands between the parts of a body.
        seconds: How long a request may take to arrive,
        bytes_per_second: and one more second for so many bytes of it.
    """

    head_bytes: int = 64 << 10
    seconds: float = 30.0
    bytes_per_second: float = 1000.0


class _Guard(_Protocol):
    """In front of one of uvicorn's protocols, which say what they have understood so far by two methods."""

    limits = Limits()

    def half(self) -> bool:
        """Whether a request has begun and is not whole."""
        raise NotImplementedError

    def progress(self) -> int:
        """A number that grows whenever more of a request is understood."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._not_understood = 0
        self._timer: asyncio.TimerHandle | None = None
        self._begin(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.progress()
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._not_understood = 0 if self.progress() > before else self._not_understood + len(data)
        if not self.half():
            self._stop()
        elif self._not_understood > self.limits.head_bytes:
            self._end(431, f"The request's headers are larger than {self.limits.head_bytes} bytes.")
        elif self._timer is None:
            self._begin(len(data))
        else:
            self._received += len(data)

    def send_400_response(self, msg: str) -> None:
        self._end(400, msg)

    def _begin(self, received: int) -> None:
        self._since, self._received = monotonic(), received
        self._timer = self.loop.call_later(self.limits.seconds, self._check)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        """A request is not whole yet. It is not the client's fault while we read nothing."""
        limits = self.limits
        if self.flow.read_paused:
            self._begin(0)
            return
        left = self._since + limits.seconds + self._received / limits.bytes_per_second - monotonic()
        if left > 0:
            self._timer = self.loop.call_later(left, self._check)
        else:
            self._timer = None
            self._end(408, "The request did not arrive in time.")

    def _end(self, status: int, message: str) -> None:
        """Close, and say why if that is possible still."""
        if self.cycle is None or self.cycle.response_complete:
            told = openai_envelope(problem(RequestError(message, status=status)), "")  # it has no path yet
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
                % (status, len(told))
                + told
            )
        self.transport.close()


def with_h11(limits: Limits) -> type[asyncio.Protocol]:
    """A connection that is read by h11."""
    import h11

    class Connection(_Guard, H11Protocol):
        def half(self) -> bool:
            state = self.conn.their_state
            return state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))

        def progress(self) -> int:
            return self._steps

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._steps = 0
            next_event = self.conn.next_event

            def counted() -> Any:
                event = next_event()
                self._steps += event is not h11.NEED_DATA
                return event

            self.conn.next_event = counted  # type: ignore[method-assign]
            super().connection_made(transport)

    Connection.limits = limits
    return Connection


def with_httptools(limits: Limits) -> type[asyncio.Protocol]:
    """A connection that is read by httptools, faster. Raises ImportError without it."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Connection(_Guard, HttpToolsProtocol):  # type: ignore[misc]
        _half = False
        _steps = 0

        def half(self) -> bool:
            return self._half

        def progress(self) -> int:
            return self._steps

        def on_message_begin(self) -> None:
            self._half = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._steps += 1
            super().on_headers_complete()
            if self.cycle is not None and self.scope["http_version"] == "1.0":
                self.cycle.send = functools.partial(_send_unchunked, self.cycle, self.cycle.send)  # type: ignore[method-assign]

        def on_body(self, body: bytes) -> None:
            self._steps += 1
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._steps += 1
            self._half = False
            super().on_message_complete()

    async def _send_unchunked(cycle: Any, send: Any, message: Any) -> None:
        """A body whose length is not known ends with the connection; uvicorn would send it in chunks."""
        if message["type"] == "http.response.start":
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                cycle.chunked_encoding = False
        elif cycle.scope["method"] != "HEAD" and cycle.chunked_encoding is False:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    Connection.limits = limits
    return Connection


def connection(limits: Limits) -> type[asyncio.Protocol]:
    """The faster of the two that is installed."""
    try:
        return with_httptools(limits)
    except ImportError:
        return with_h11(limits)
