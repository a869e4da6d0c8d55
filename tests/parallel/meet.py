"""Ranks as threads, which meet in memory as processes do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sapwood.parallel.segment import Segment
from sapwood.parallel.shared import SharedMesh

T = TypeVar("T")


def ranks(size: int, run: Callable[[SharedMesh], T]) -> list[T]:
    """What `run` yields on each of them."""
    return segments(size, lambda segment: run(SharedMesh(segment)))


def segments(size: int, run: Callable[[Segment], T]) -> list[T]:
    """The same, of ranks that are given what they share."""
    first = Segment.create(size)
    shared = [first, *(Segment(first.path, rank, size) for rank in range(1, size))]
    first.forget()

    def guarded(segment: Segment) -> T:
        try:
            return run(segment)
        except BaseException as error:
            segment.raise_alarm(segment.rank, repr(error))
            raise

    with ThreadPoolExecutor(size) as pool:
        return [one.result() for one in [pool.submit(guarded, segment) for segment in shared]]
