"""Bytes of files, read ahead of whoever uses them: in the order in which they are wanted, by several threads, into a ring."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sapwood.base.errors import ModelError

_NUM_THREADS = 4  # a disk is at its fastest when it has several reads to do, and so is memory
_CHUNK_BYTES = 8 << 20
_RING_BYTES = 128 << 20
_PINNED_BYTES = 512 << 20
_ALIGNMENT = 64


class Span(NamedTuple):
    """Bytes [start, stop) of a file."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Wanted(NamedTuple):
    """What is used under a `name`, and released so many `times`; of a tensor, `where` in it that is."""

    name: str
    span: Span
    where: tuple[slice, ...] = ()
    times: int = 1


class _Chunk(NamedTuple):
    """A part of a span, and where it goes."""

    place: _Place
    path: Path
    start: int
    view: memoryview


class _Place:
    """Memory for a span, of which so many chunks are `missing`. It lies at `first` in the ring, or else is its own."""

    def __init__(self, data: Tensor, first: int | None) -> None:
        self.data, self.first, self.missing = data, first, -(-len(data) // _CHUNK_BYTES)


class Ahead:
    """Reads what is `wanted`, one after the other, as far ahead as there is memory: a ring, `pinned` where a GPU copies out of
    it, and what one span takes that does not fit in. Leaving the context ends the reading.

    `now` is what comes next; `take` it as often as it takes, then `release` it.
    """

    def __init__(self, wanted: Sequence[Wanted], *, pinned: bool = False) -> None:
        self._wanted, self._unplaced, self._released = deque(wanted), deque(wanted), 0
        size = min(_PINNED_BYTES if pinned else _RING_BYTES, sum(_aligned(one.span.size) for one in wanted))
        self._ring = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._places: deque[_Place] = deque()  # of what is wanted first
        self._chunks: deque[_Chunk] = deque()  # of the last of them
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._over = False
        self._files, self._opened = ExitStack(), dict[Path, int]()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_NUM_THREADS)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(None)
        for thread in self._threads:
            thread.join()
        self._files.close()

    @property
    def now(self) -> Wanted | None:
        return self._wanted[0] if self._wanted else None

    def take(self) -> Tensor:
        """The bytes of what comes now, uint8, which stay until it is released. Raises ModelError if they cannot be read."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or (self._places and not self._places[0].missing))
            if self._error is not None:
                raise self._error
            return self._places[0].data

    def release(self) -> int:
        """What comes now has been used once. Returns how many bytes are done with."""
        self._released += 1
        if self._released < self._wanted[0].times:
            return 0
        self.take()  # a thread may be writing there
        with self._changed:
            self._places.popleft()
            self._released = 0
            self._changed.notify_all()
        return self._wanted.popleft().span.size

    # -- threads

    def _work(self) -> None:
        try:
            while (chunk := self._claim()) is not None:
                _fill(chunk.view, self._file(chunk.path), chunk.start, chunk.path)
                with self._changed:
                    chunk.place.missing -= 1
                    self._changed.notify_all()
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            self._over, self._error = True, self._error or error
            self._changed.notify_all()

    def _claim(self) -> _Chunk | None:
        """The next chunk, as soon as there is a place for it; None if no more are wanted."""
        with self._changed:
            while not self._over:
                if self._chunks:
                    return self._chunks.popleft()
                if not self._unplaced:
                    return None
                if (place := self._place(self._unplaced[0].span.size)) is None:
                    self._changed.wait()
                    continue
                self._places.append(place)
                self._chunks.extend(_chunks(place, self._unplaced.popleft().span))
                self._changed.notify_all()
            return None

    def _place(self, size: int) -> _Place | None:
        """A place behind those that are taken, if there is one now."""
        if size > len(self._ring):
            alone = all(place.first is not None for place in self._places)
            return _Place(torch.empty(size, dtype=torch.uint8), None) if alone else None
        taken = [(place.first, len(place.data)) for place in self._places if place.first is not None]
        oldest = taken[0][0] if taken else 0
        head = taken[-1][0] + _aligned(taken[-1][1]) if taken else 0
        if head < oldest or (head == oldest and taken):  # it has come round
            fits = head + size <= oldest
        else:
            fits = head + size <= len(self._ring)
            if not fits and size <= oldest:
                head, fits = 0, True
        return _Place(self._ring[head : head + size], head) if fits else None

    def _file(self, path: Path) -> int:
        with self._changed:
            if path not in self._opened:
                try:
                    self._opened[path] = self._files.enter_context(path.open("rb", buffering=0)).fileno()
                except OSError as error:
                    raise _unreadable(path, error) from error
            return self._opened[path]


def read(span: Span) -> Tensor:
    """Bytes of a file, uint8. Raises ModelError if they cannot be read."""
    with Ahead([Wanted("", span)]) as ahead:
        return ahead.take()


def _chunks(place: _Place, span: Span) -> Iterator[_Chunk]:
    view = place.data.numpy().data
    for first in range(0, span.size, _CHUNK_BYTES):
        yield _Chunk(place, span.path, span.start + first, view[first : first + _CHUNK_BYTES])


def _fill(view: memoryview, file: int, start: int, path: Path) -> None:
    while len(view):
        try:
            count = os.preadv(file, [view], start)
        except OSError as error:
            raise _unreadable(path, error) from error
        if not count:
            raise ModelError(f"{path} ends at byte {start}, within a tensor: it is cut off. Fetch it again.")
        view, start = view[count:], start + count


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path} cannot be read: {error.strerror or error}.")


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
