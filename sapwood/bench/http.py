"""A small HTTP client for many streamed completions at once: it notes when tokens come and reads little else.

Connections are kept and used again. One core of the client's machine follows tens of thousands of tokens a second.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from sapwood.base.errors import UserError

MOST_ERROR_TEXT = 1 << 16


class HttpFailed(Exception):
    """A request that did not get its answer. `kind` is short and the same for the same trouble."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or kind)
        self.kind = kind


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
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


class Client:
    """Streams completions from one server."""

    def __init__(self, url: str, *, api_key: str | None = None, path: str = "/v1/completions") -> None:
        self.address = Address(url)
        lines = [
            f"POST {self.address.path}{path} HTTP/1.1",
            f"Host: {self.address.netloc}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "User-Agent: sapwood-bench",
        ]
        if api_key:
            lines.append(f"Authorization: Bearer {api_key}")
        self._head = "\r\n".join(lines).encode("latin-1")
        self._idle: list[_Connection] = []

    async def stream(self, body: bytes, on_event: OnEvent) -> None:
        """Send one request and hand each event on, with the time at which it came. Raises HttpFailed."""
        message = b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body)
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                try:
                    return await self._exchange(connection, message, on_event)
                except HttpFailed:
                    if connection.answered:
                        raise
                # The server had closed it meanwhile, before it saw the request: once more, on a new one.
        await self._exchange(await self._connect(), message, on_event)

    async def _connect(self) -> _Connection:
        address = self.address
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, address.host, address.port, ssl=address.tls)
        except OSError as error:
            raise HttpFailed(
                "no connection", f"no connection to {address.netloc}: {error.strerror or error}"
            ) from error
        return connection

    async def _exchange(self, connection: _Connection, message: bytes, on_event: OnEvent) -> None:
        try:
            await connection.exchange(message, on_event)
        except BaseException:
            connection.close()
            raise
        if connection.open:
            self._idle.append(connection)

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # transports close in the loop's next turn


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time: HTTP/1.1, bodies in chunks, of known length, or until it closes."""

    def __init__(self) -> None:
        self.open = False
        self.answered = False
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._on_event: OnEvent | None = None
        self._raw = b""  # not parsed yet
        self._text = b""  # of the body, an unfinished line
        self._status = 0
        self._left: int | None = None  # bytes of the body to come, where that is known
        self._chunked = self._in_body = self._keeps = False

    async def exchange(self, message: bytes, on_event: OnEvent) -> None:
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._on_event = on_event
        self._raw = self._text = b""
        self._in_body = self.answered = False
        self._transport.write(message)
        await self._done

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()

    # -- asyncio's side ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._in_body and not self._chunked and self._left is None:
            self._finish()
        else:
            self._fail(HttpFailed("connection closed", "the server closed the connection in the middle of an answer"))

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            self.close()  # nobody asked
            return
        now = perf_counter()
        self.answered = True
        self._raw = self._raw + data if self._raw else data
        try:
            if not self._in_body and not self._read_head():
                return
            if self._chunked:
                self._read_chunks(now)
            else:
                self._read_plain(now)
        except HttpFailed as failed:
            self._fail(failed)
        except (ValueError, IndexError) as error:
            self._fail(HttpFailed("not understood", f"what the server sent is not HTTP: {error}"))

    # -- parsing ------------------------------------------------------------------------------------------------------

    def _read_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self._raw[:end].split(b"\r\n")
        self._status = int(first.split(b" ", 2)[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._raw = self._raw[end + 4 :]
        if 100 <= self._status < 200:
            return self._read_head()
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        length = headers.get(b"content-length")
        self._left = int(length) if length is not None and not self._chunked else None
        ends = not self._chunked and self._left is None
        self._keeps = not ends and headers.get(b"connection", b"").lower() != b"close"
        self._in_body = True
        return True

    def _read_chunks(self, now: float) -> None:
        raw, at = self._raw, 0
        while True:
            line = raw.find(b"\r\n", at)
            if line < 0:
                break
            size = int(raw[at:line].partition(b";")[0], 16)
            if not size:
                if raw.find(b"\r\n", line + 2) >= 0:  # the end of the (empty) trailer
                    self._finish()
                break
            if len(raw) < line + 4 + size:
                break
            self._take(raw[line + 2 : line + 2 + size], now)
            at = line + 4 + size
        self._raw = raw[at:]

    def _read_plain(self, now: float) -> None:
        data, self._raw = self._raw, b""
        self._take(data, now)
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._finish()

    def _take(self, data: bytes, now: float) -> None:
        text = self._text + data if self._text else data
        if self._status != 200:
            self._text = text[:MOST_ERROR_TEXT]
            return
        *lines, self._text = text.split(b"\n")
        assert self._on_event is not None
        for line in lines:
            if line.startswith(b"data:") and (content := line[5:].strip()) != b"[DONE]":
                self._on_event(now, _event(content))

    def _finish(self) -> None:
        if self._done is None or self._done.done():
            return
        if self._status != 200:
            self._fail(HttpFailed(f"HTTP {self._status}", _error_text(self._text)))
            return
        if not self._keeps:
            self.close()
        self._done.set_result(None)

    def _fail(self, failed: HttpFailed) -> None:
        self.close()
        if self._done is not None and not self._done.done():
            self._done.set_exception(failed)


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
