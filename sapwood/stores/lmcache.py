"""Pages in an LMCache server (`lmcache server`, `lm://HOST:PORT`), by its protocol over TCP.

A request is nine int32 of the sender's order (command, bytes behind it, format, dtype, location, four sizes) and a key of 150 bytes; its reply nine
int32 that begin with a code and the bytes behind it. What is put has no reply. The key is LMCache's: a model, ranks, a rank, a hash and a dtype.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Sequence
from threading import Lock
from time import monotonic
from typing import TypeVar
from zlib import crc32

import numpy as np

from sapwood.base.errors import ConfigError
from sapwood.base.pages import Bytes
from sapwood.stores.base import Key

log = logging.getLogger(__name__)

_ASK, _TOLD = struct.Struct("9i150s"), struct.Struct("9i")
_PUT, _GET, _EXIST, _HEALTH = 1, 2, 3, 5
_SUCCESS = 200
_BINARY, _UINT8 = 4, 6  # bytes, whatever they are
_TOGETHER = 256  # questions that are sent before their answers are read
_CRC = 4  # bytes before each page
_SECONDS = 0.5  # that the server has for an answer
_PAUSE_SECONDS = 30.0  # before one that gave none is asked again

T = TypeVar("T")


def asked(command: int, key: Key, num_bytes: int = 0) -> bytes:
    """A request for a page, to be followed by so many bytes."""
    name = f"sapwood@1@0@{key.hex()}@uint8".encode()
    return _ASK.pack(command, num_bytes, _BINARY, _UINT8, 0, num_bytes, 0, 0, 0, name.ljust(150))


class _Line:
    """A connection that is made when it is needed, and lost with whatever goes wrong on it."""

    def __init__(self, host: str, port: int) -> None:
        self._address, self._lock = (host, port), Lock()
        self._socket: socket.socket | None = None

    def use(self, speak: Callable[[socket.socket], T]) -> T:
        """Raises OSError."""
        with self._lock:
            try:
                if self._socket is None:
                    self._socket = socket.create_connection(self._address, timeout=_SECONDS)
                    self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return speak(self._socket)
            except BaseException:
                self._end()
                raise

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class LMCacheShelf:
    """Keeps the protocol `Shelf` with a server, which messages call `shown`. It gives nothing up and forgets nothing. One that does not answer
    has nothing, for a while. Raises ConfigError if it does not answer now."""

    name = "lmcache"

    def __init__(self, host: str, port: int, shown: str) -> None:
        self.bytes_per_second = 0.0
        self._paused = 0.0
        self._asking, self._moving = _Line(host, port), _Line(host, port)  # so that questions need not wait for pages
        try:
            well = self._asking.use(lambda line: _codes(line, asked(_HEALTH, b"\0"), 1) == [_SUCCESS])
        except OSError as error:
            raise ConfigError(f"--kv-store {shown} does not answer: {error}.") from error
        if not well:
            raise ConfigError(f"--kv-store {shown} does not answer as an LMCache server does.")

    def has(self, keys: Sequence[Key]) -> list[bool]:
        def ask(line: socket.socket) -> list[bool]:
            found: list[bool] = []
            for first in range(0, len(keys), _TOGETHER):
                some = keys[first : first + _TOGETHER]
                codes = _codes(line, b"".join(asked(_EXIST, key) for key in some), len(some))
                found += [code == _SUCCESS for code in codes]
            return found

        return self._try(self._asking, ask, [False] * len(keys))

    def put(self, key: Key, page: Bytes) -> bool:
        def send(line: socket.socket) -> bool:
            line.sendall(asked(_PUT, key, _CRC + page.nbytes) + crc32(page.data).to_bytes(_CRC, "little"))
            line.sendall(page.data)
            return True

        return self._try(self._moving, send, False)

    def get(self, key: Key, page: Bytes) -> bool:
        def take(line: socket.socket) -> bytes | None:
            line.sendall(asked(_GET, key))
            code, num_bytes, *_ = _TOLD.unpack(_read(line, bytearray(_TOLD.size)))
            if code != _SUCCESS:
                return None
            if num_bytes != _CRC + page.nbytes:
                raise ConnectionError(f"a page of {num_bytes} bytes came, and not of {_CRC + page.nbytes}")
            return bytes(_read(line, bytearray(num_bytes)))

        told = self._try(self._moving, take, None)
        if told is None:
            return False
        np.copyto(page, np.frombuffer(told, np.uint8, offset=_CRC))
        if crc32(page.data).to_bytes(_CRC, "little") == told[:_CRC]:
            return True
        log.warning("a page from LMCache is damaged, and is not used")
        return False

    def touch(self, keys: Sequence[Key]) -> None:
        """The server gives nothing up."""

    def delete(self, keys: Sequence[Key]) -> None:
        """The protocol has no word for it."""

    def close(self) -> None:
        self._asking.close()
        self._moving.close()

    def _try(self, line: _Line, speak: Callable[[socket.socket], T], nothing: T) -> T:
        """What the server says; `nothing` while it says nothing."""
        if monotonic() < self._paused:
            return nothing
        try:
            return line.use(speak)
        except OSError as error:
            self._paused = monotonic() + _PAUSE_SECONDS
            log.warning("LMCache is not asked for a while: %s", error)
            return nothing


def _codes(line: socket.socket, questions: bytes, count: int) -> list[int]:
    """What the server says to each of so many questions."""
    line.sendall(questions)
    told = _read(line, bytearray(count * _TOLD.size))
    return [one[0] for one in _TOLD.iter_unpack(told)]


def _read(line: socket.socket, into: bytearray) -> bytearray:
    view, done = memoryview(into), 0
    while done < len(into):
        if not (count := line.recv_into(view[done:])):
            raise ConnectionError("the server has ended")
        done += count
    return into
