"""A small HTTP client for many streamed completions at once: it notes when tokens come and reads little else.

Connections are kept and used again. One core of the client's machine follows tens of thousands of tokens a second.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sapwood.base.errors import UserError

MOST_ERROR_TEXT = 1 << 16


class HttpFailed(Exception):
    """A request that did not get its answer. `kind` is short and the same for the same trouble."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or kind)
        self.kind = kind


class Choice(msgspec.Struct):
    text: str | None = None
    token_ids: list[int] | None = None


class CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: CachedTokens | None = None


class Event(msgspec.Struct):
    """What matters of one event of a completion stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


OnEvent = Callable[[float, Event], None]

_decode_event = msgspec.json.Decoder(Event).decode


class Address:
    """Where a server is: from its URL, with or without /v1."""

    def __init__(self, url: str) -> None:
        if "://" not in url:
            url = f"http://{url}"
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UserError(f"--url {url}: expected something like http://127.0.0.1:8000.")
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self.path = parts.path
        self.netloc = parts.netloc.rpartition("@")[2]
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None


class _Connection(asyncio.StreamReader):
    """One connection, one exchange at a time. `now` is when its last bytes came, whenever they are read."""

    now = 0.0
    transport: asyncio.WriteTransport

    def feed_data(self, data: Any) -> None:
        self.now = perf_counter()
        super().feed_data(data)


class Client:
    """Streams completions from one server."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self.address = Address(url)
        lines = [
            f"POST {self.address.path}/v1/completions HTTP/1.1",
            f"Host: {self.address.netloc}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "User-Agent: sapwood-bench",
            *([f"Authorization: Bearer {api_key}"] if api_key else []),
        ]
        self._head = "\r\n".join(lines).encode("latin-1")
        self._idle: list[_Connection] = []

    async def stream(self, body: bytes, on_event: OnEvent) -> None:
        """Send one request and hand each event on, with the time at which it came. Raises HttpFailed."""
        message = b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body)
        while self._idle:
            connection = self._idle.pop()
            connection.now = 0.0
            try:
                return await self._exchange(connection, message, on_event)
            except HttpFailed:
                if connection.now:
                    raise
                # The server had closed it meanwhile, before it saw the request: once more, on another one.
        await self._exchange(await self._connect(), message, on_event)

    async def _connect(self) -> _Connection:
        address, loop = self.address, asyncio.get_running_loop()
        connection = _Connection(loop=loop)
        make = lambda: asyncio.StreamReaderProtocol(connection, loop=loop)  # noqa: E731
        try:
            connection.transport, _ = await loop.create_connection(make, address.host, address.port, ssl=address.tls)
        except OSError as error:
            why = f"no connection to {address.netloc}: {error.strerror or error}"
            raise HttpFailed("no connection", why) from error
        return connection

    async def _exchange(self, connection: _Connection, message: bytes, on_event: OnEvent) -> None:
        try:
            connection.transport.write(message)
            if await _answer(connection, on_event):
                self._idle.append(connection)
                return
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            why = "the server closed the connection in the middle of an answer"
            raise HttpFailed("connection closed", why) from error
        except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise HttpFailed("not understood", f"what the server sent is not HTTP: {error}") from error
        finally:
            if connection not in self._idle:
                connection.transport.close()

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().transport.close()
        await asyncio.sleep(0)  # transports close in the loop's next turn


async def _answer(connection: _Connection, on_event: OnEvent) -> bool:
    """Read an answer and hand its events on; whether another one may follow on this connection."""
    status, headers = 100, dict[bytes, bytes]()
    while 100 <= status < 200:
        first, *lines = (await connection.readuntil(b"\r\n\r\n")).split(b"\r\n")
        status = int(first.split(b" ", 2)[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    text = b""
    async for piece in _body(connection, headers):
        if status != 200:
            text = (text + piece)[:MOST_ERROR_TEXT]
            continue
        *complete, text = (text + piece).split(b"\n")
        for line in complete:
            if line.startswith(b"data:") and (content := line[5:].strip()) != b"[DONE]":
                on_event(connection.now, _event(content))
    if status != 200:
        raise HttpFailed(f"HTTP {status}", _error_text(text))
    return headers.get(b"connection", b"").lower() != b"close" and not connection.at_eof()


async def _body(connection: _Connection, headers: Mapping[bytes, bytes]) -> AsyncIterator[bytes]:
    """A body as it comes: in chunks, of known length, or until the connection closes."""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        while size := int((await connection.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield (await connection.readexactly(size + 2))[:-2]
        while await connection.readuntil(b"\r\n") != b"\r\n":
            pass  # the trailer
        return
    left = int(headers[b"content-length"]) if b"content-length" in headers else None
    while left is None or left > 0:
        piece = await connection.read(min(left or 1 << 16, 1 << 16))
        if not piece and left is not None:
            raise asyncio.IncompleteReadError(b"", left)
        if not piece:
            return
        left = left and left - len(piece)
        yield piece


def _event(content: bytes) -> Event:
    try:
        event = _decode_event(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpFailed("not understood", f"an event that cannot be read ({error}): {content[:200]!r}") from error
    if event.error is not None:
        raise HttpFailed("error in the stream", _message(event.error))
    return event


def _error_text(body: bytes) -> str:
    try:
        return _message(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:200].decode("utf-8", "replace")


def _message(error: Any) -> str:
    inner = error.get("error", error) if isinstance(error, dict) else error
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)
