"""The protocols of what keeps pages beyond the device.

A `Shelf` is a place: a dictionary from keys to bytes that may lose anything at any time. A `KVStore` is what the engine talks to:
it never waits, and what it did is polled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sapwood.base.pages import Bytes

Key = bytes
"""Names a page of one KV group, and by the hashes in it the model, its weights, and all tokens up to the page's last."""


class Shelf(Protocol):
    """A place for pages. `put`, `get` and `delete` are called from one thread, `has` and `touch` from another one too.

    None of them raises for what a place is like (full, gone, damaged): a page that is not there is computed. `bytes_per_second` is
    how fast `get` has been of late, 0 before there is anything to go by.
    """

    name: str
    bytes_per_second: float

    def has(self, keys: Sequence[Key]) -> list[bool]: ...

    def put(self, key: Key, page: Bytes) -> bool:
        """Keep a copy; False if it is not kept."""
        ...

    def get(self, key: Key, page: Bytes) -> bool:
        """Fill `page`, whose size is that of what was put; False if it is not there, whole and right."""
        ...

    def touch(self, keys: Sequence[Key]) -> None:
        """These were wanted: they are given up later than others."""
        ...

    def delete(self, keys: Sequence[Key]) -> None: ...

    def close(self) -> None:
        """Nothing is called after this."""
        ...


class Done(NamedTuple):
    """A job is over, and its buffers are the caller's again. `good` tells of each page whether it was kept, or is there."""

    ticket: int
    good: list[bool]


class KVStore(Protocol):
    """Pages by their keys. Buffers are the caller's, and stay as they are until the job is polled as done."""

    def lookup(self, keys: Sequence[Key]) -> list[bool]:
        """Which of the pages are there, as far as is known; cheap."""
        ...

    def seconds(self, keys: Sequence[Key], num_bytes: int) -> float:
        """How long loading these would take, of so many bytes in all, as it has been of late; 0 where nothing is known."""
        ...

    def submit_store(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        """Begin to keep pages. Returns the job's ticket."""
        ...

    def submit_load(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        """Begin to fill buffers with pages. Returns the job's ticket."""
        ...

    def poll(self) -> list[Done]:
        """The jobs that are done since the last call, in the order in which they ended."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when a job is done that was not polled, or after that time."""
        ...

    def touch(self, keys: Sequence[Key]) -> None: ...

    def delete(self, keys: Sequence[Key]) -> None: ...

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        """Counters and seconds since the start, by name."""
        ...

    def close(self, seconds: float) -> None:
        """End, within about that time; jobs that are not done by then are lost."""
        ...
