"""Pages between engines of one host: the reader maps the memory that they lie in.

The memory is a file without a name, which is there for as long as somebody has it: nothing is left behind by a process that was killed.
Another one finds it through /proc, and knows it by a stamp at its beginning; in another container, or as another user, it does
not, and pages go by sockets.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence

import msgspec
import numpy as np

from sapwood.base.pages import Bytes

_STAMP = 64  # bytes at the beginning; what follows is aligned to as many


class Arena:
    """Memory that can be shared, made once."""

    def __init__(self) -> None:
        self.stamp = secrets.token_bytes(_STAMP)
        self.fd = os.memfd_create("sapwood-kv", os.MFD_CLOEXEC)
        self.layout: list[tuple[int, int, int]] = []

    def make(self, shapes: Sequence[tuple[int, int]]) -> list[Bytes]:
        """Arrays uint8 [blocks, bytes] of these shapes; takes memory as they are filled."""
        starts = [_STAMP]
        for blocks, size in shapes:
            starts.append(starts[-1] + -(-blocks * size // _STAMP) * _STAMP)
        os.ftruncate(self.fd, starts[-1])
        memory = np.frombuffer(mmap.mmap(self.fd, starts[-1]), np.uint8)
        memory[:_STAMP] = np.frombuffer(self.stamp, np.uint8)
        self.layout = [(start, *shape) for start, shape in zip(starts, shapes, strict=False)]
        return [_room(memory, *one) for one in self.layout]

    @staticmethod
    def possible() -> bool:
        """Whether this system has such memory."""
        return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")

    def close(self) -> None:
        """Nobody can find it any more; who has it keeps it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Where(msgspec.Struct, frozen=True):
    pid: int
    fd: int
    stamp: bytes
    layout: list[tuple[int, int, int]]


class SharedTransfer:
    """Keeps the protocol `Transfer` with an arena that regions have been made in; without one, or with others, it only reads."""

    name = "shm"

    def __init__(self, arena: Arena | None = None) -> None:
        self._arena = arena

    def register(self, regions: Sequence[Bytes]) -> None:
        arena = self._arena
        if arena is not None and [one.shape for one in regions] != [tuple(shape) for _, *shape in arena.layout]:
            self._arena = None  # the pager has taken memory of its own

    def metadata(self) -> bytes:
        arena = self._arena
        if arena is None:
            return b""
        return msgspec.msgpack.encode(_Where(os.getpid(), arena.fd, arena.stamp, arena.layout))

    def add_peer(self, host: str, port: int, metadata: bytes) -> SharedReader | None:
        if not metadata:
            return None
        try:
            where = msgspec.msgpack.decode(metadata, type=_Where)
            fd = os.open(f"/proc/{where.pid}/fd/{where.fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError, msgspec.MsgspecError):
            return None
        try:
            end = max(start + blocks * size for start, blocks, size in where.layout)
            if os.fstat(fd).st_size < end:
                return None
            memory = np.frombuffer(mmap.mmap(fd, 0, prot=mmap.PROT_READ), np.uint8)
        except (OSError, ValueError):
            return None
        finally:
            os.close(fd)
        if memory[:_STAMP].tobytes() != where.stamp:
            return None
        return SharedReader([_room(memory, *one) for one in where.layout])


class SharedReader:
    """Keeps the protocol `Reader`."""

    def __init__(self, rooms: Sequence[Bytes]) -> None:
        self._rooms = list(rooms)

    def read(self, region: int, blocks: Sequence[int], into: Sequence[Bytes]) -> None:
        room = self._rooms[region]
        for block, page in zip(blocks, into, strict=True):
            np.copyto(page, room[block])

    def close(self) -> None:
        self._rooms.clear()


def _room(memory: Bytes, start: int, blocks: int, size: int) -> Bytes:
    return memory[start : start + blocks * size].reshape(blocks, size)
