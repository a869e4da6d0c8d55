"""HTTP/1.1 to servers, as little of it as a request needs: connections that stay open, and answers that are read as they come."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from types import TracebackType
from typing import NamedTuple, cast

import httptools
from aiohappyeyeballs import start_connection
from multidict import CIMultiDict

_CONNECT_SECONDS = 5.0
_NEXT_SECONDS = 0.25  # until the next address of a name is tried beside the one before (RFC 8305)
_SILENT_SECONDS = 600.0  # that an answer, or the next piece of one, may take
_IDLE_SECONDS = 4.0  # that a connection is kept; uvicorn's servers close theirs after five
_SWEEP_SECONDS = 1.0
_MOST_HELD = 64 << 10  # bytes of an answer that wait to be taken
_MOST_HEAD = 256 << 10  # bytes of its headers
_NO_BODY = (204, 304)
_LIMBS = "utf-8", "surrogateescape"  # headers are bytes; what is no UTF-8 comes out as it came in


class Gone(ConnectionError):
    """The connection ended, or brought what is no HTTP.

    Attributes:
        at_once: It had rested, and was closed before anything of an answer came.
    """

    def __init__(self, why: str, *, at_once: bool = False) -> None:
        super().__init__(why)
        self.at_once = at_once


class Address(NamedTuple):
    """Where a server is. `name` is what its certificate has to be for; None without TLS."""

    host: str
    port: int
    name: str | None


class Pool:
    """Connections to any number of servers."""

    def __init__(self) -> None:
        self._idle: dict[Address, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        self._tls: ssl.SSLContext | None = None

    async def ask(self, address: Address, head: bytes, body: bytes) -> Connection:
        """Send a request and wait until an answer begins. Raises Gone, OSError and TimeoutError."""
        connection = self._rested(address)
        reused = connection is not None
        if connection is None:
            connection = await self._connected(address)
        try:
            await connection.ask(head, body)
        except BaseException as error:
            connection.release()
            if reused and isinstance(error, Gone) and not connection.heard:
                raise Gone(str(error), at_once=True) from error
            raise
        return connection

    async def close(self) -> None:
        """Drop them all."""
        self._sweeping.cancel()
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()

    def keep(self, connection: Connection) -> None:
        """It may be used again."""
        connection.since = self._loop.time()
        self._idle.setdefault(connection.address, deque()).append(connection)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._all.discard(connection)

    def _rested(self, address: Address) -> Connection | None:
        idle, oldest = self._idle.get(address), self._loop.time() - _IDLE_SECONDS
        while idle:
            connection = idle.pop()
            if connection.open and connection.since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connected(self, address: Address) -> Connection:
        made = Connection(self, address)
        if address.name is not None and self._tls is None:
            self._tls = ssl.create_default_context()
        async with asyncio.timeout(_CONNECT_SECONDS):
            known = await self._loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            found = await start_connection(known, happy_eyeballs_delay=_NEXT_SECONDS, interleave=1)
            try:
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tls = self._tls if address.name is not None else None
                await self._loop.create_connection(lambda: made, sock=found, ssl=tls, server_hostname=address.name)
            except BaseException:
                found.close()
                raise
        self._all.add(made)
        return made

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self._all):
            if connection.waits and connection.since < now - _SILENT_SECONDS:
                connection.fail(TimeoutError(f"nothing came for {_SILENT_SECONDS:g} s"))
        for address, idle in list(self._idle.items()):
            while idle and idle[0].since < now - _IDLE_SECONDS:
                idle.popleft().abort()
            if not idle:
                del self._idle[address]
        self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)


class Connection(asyncio.Protocol):
    """One connection, and the answer that comes over it now. Left as a context, it is kept for the next request if the answer was read to
    its end, and closed if not.

    Attributes:
        status: Of the answer; `headers` its headers.
        heard: Something has come since the last request.
        since: When it last began to wait, or to rest; the loop's time.
    """

    status: int
    headers: CIMultiDict[str]

    def __init__(self, pool: Pool, address: Address) -> None:
        self.address, self.since, self.heard = address, 0.0, False
        self._pool, self._loop = pool, asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._pieces: list[bytes] = []
        self._held = self._head_size = 0
        self._asked = self._begun = self._ended = self._paused = False
        self._until_close = self._stays = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def open(self) -> bool:
        return self._error is None and self._transport is not None and not self._transport.is_closing()

    @property
    def waits(self) -> bool:
        """Whether somebody waits for what comes over it."""
        return self._waiter is not None

    @property
    def content_type(self) -> str:
        """In small letters, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send a request, and wait until the headers of its answer are there."""
        assert self._transport is not None and not self._asked
        self._asked, self.heard, self._begun, self._ended = True, False, False, False
        self._until_close = self._stays = False
        self._head_size, self.headers = 0, CIMultiDict()
        if len(body) < _MOST_HELD:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        while not self._begun:
            await self._more()

    async def piece(self) -> bytes:
        """What has come of the body, b"" at its end."""
        while not self._pieces:
            if self._ended:
                return b""
            await self._more()
        found = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return found

    async def read(self) -> bytes:
        """All of the body."""
        found = [await self.piece()]
        while found[-1]:
            found.append(await self.piece())
        return found[0] if len(found) == 2 else b"".join(found)

    def release(self) -> None:
        """The answer is no longer wanted."""
        if not self._asked:
            return
        whole = self._ended and not self._pieces and self._stays and self.open
        self._asked = False
        if whole and self._transport is not None and not self._transport.get_write_buffer_size():
            self._pool.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: BaseException) -> None:
        """Nothing more is to be had from it."""
        if self._error is None:
            self._error = error
        self._wake()
        self.abort()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self.since = self._loop.time()
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- what the transport tells -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self._begun and self._until_close:
            self._ended = True
        if self._error is None:
            self._error = Gone(str(error) if error else "the connection was closed")
        self._pool.forget(self)
        self._wake()

    def data_received(self, data: bytes) -> None:
        if not self._asked or self._ended:
            self.fail(Gone("something came that was not asked for"))
            return
        self.heard = True
        if not self._begun:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(Gone(f"this is no HTTP: {error}"))
            return
        if not self._begun and self._head_size > _MOST_HEAD:
            self.fail(Gone("its headers are too long"))
        elif self._held > _MOST_HELD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    # -- what the parser tells --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._ended:
            self._stays = False  # more than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._begun:
            self.headers.add(name.decode(*_LIMBS), value.decode(*_LIMBS))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._begun:
            return
        if status < 200:
            self.headers.clear()  # a word in between; the answer follows
            return
        self.status, self._begun = status, True
        chunked = self.headers.get("transfer-encoding", "").lower().endswith("chunked")
        self._until_close = not chunked and "content-length" not in self.headers and status not in _NO_BODY

    def on_body(self, piece: bytes) -> None:
        if self._ended:
            return
        self._pieces.append(piece)
        self._held += len(piece)

    def on_message_complete(self) -> None:
        if self._begun and not self._ended:
            self._ended = True
            self._stays = self._parser.should_keep_alive()
