"""Pages in a Redis or Valkey, which several engines may share and which decides itself what it gives up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from sapwood.base.errors import ConfigError
from sapwood.base.pages import Bytes
from sapwood.stores.base import Key

log = logging.getLogger(__name__)

_PREFIX = b"sapwood:1:"
_CRC = 4  # bytes before each page
_SECONDS = 0.5  # that the server has for an answer
_PAUSE_SECONDS = 30.0  # before one that gave none is asked again

T = TypeVar("T")


class RedisShelf:
    """Keeps the protocol `Shelf` with a server at `url`, which messages call `shown`. One that does not answer has nothing, for a
    while. Raises ConfigError if it does not answer now, or the client is missing."""

    name = "redis"

    def __init__(self, url: str, shown: str) -> None:
        self.bytes_per_second = 0.0
        self._paused = 0.0
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise ConfigError("--kv-store redis: needs a client: pip install 'sapwood[redis]'.") from None
        self._errors = redis.RedisError, OSError
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=_SECONDS,
                socket_connect_timeout=_SECONDS,
                retry=Retry(
                    NoBackoff(), 0
                ),  # by itself it would try again for seconds, for which the engine would stand still
            )
            self._client.ping()
        except (ValueError, *self._errors) as error:
            raise ConfigError(f"--kv-store {shown} does not answer: {error}.") from error

    def has(self, keys: Sequence[Key]) -> list[bool]:
        def ask() -> list[bool]:
            pipe = self._client.pipeline(transaction=False)
            for key in keys:
                pipe.exists(_PREFIX + key)
            return [bool(count) for count in pipe.execute()]

        return self._try(ask, [False] * len(keys)) if keys else []

    def put(self, key: Key, page: Bytes) -> bool:
        def send() -> bool:
            told = crc32(page.data).to_bytes(_CRC, "little") + page.tobytes()
            return bool(self._client.set(_PREFIX + key, told))

        return self._try(send, False)

    def get(self, key: Key, page: Bytes) -> bool:
        told = self._try(lambda: self._client.get(_PREFIX + key), None)
        if told is None or len(told) != _CRC + page.nbytes:
            return False
        np.copyto(page, np.frombuffer(told, np.uint8, offset=_CRC))
        if crc32(page.data).to_bytes(_CRC, "little") == told[:_CRC]:
            return True
        log.warning("a page from Redis is damaged, and is not used")
        self.delete([key])
        return False

    def touch(self, keys: Sequence[Key]) -> None:
        """The server sees what is got."""

    def delete(self, keys: Sequence[Key]) -> None:
        if keys:
            self._try(lambda: self._client.delete(*(_PREFIX + key for key in keys)), 0)

    def close(self) -> None:
        self._client.close()

    def _try(self, ask: Callable[[], T], nothing: T) -> T:
        """What the server says; `nothing` while it says nothing."""
        if monotonic() < self._paused:
            return nothing
        try:
            return ask()
        except self._errors as error:
            self._paused = monotonic() + _PAUSE_SECONDS
            log.warning("Redis is not asked for a while: %s", error)
            return nothing
