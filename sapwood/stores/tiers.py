"""Several places in a row, the fastest first."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from sapwood.base.pages import Bytes
from sapwood.stores.base import Key, Shelf

_RECENT = 64 << 20  # bytes over which a speed is taken


class Tiers:
    """Shelves in a row: every page is put on all of them, got from the first that has it, and promoted to those before that one.

    Attributes:
        hits, loaded_bytes, stored_bytes, seconds: Pages got, bytes got and put, and the time of both, by shelf.
    """

    def __init__(self, shelves: Sequence[Shelf]) -> None:
        self.shelves = tuple(shelves)
        names = [shelf.name for shelf in shelves]
        self.hits = dict.fromkeys(names, 0)
        self.loaded_bytes = dict.fromkeys(names, 0)
        self.stored_bytes = dict.fromkeys(names, 0)
        self.load_seconds = dict.fromkeys(names, 0.0)
        self.store_seconds = dict.fromkeys(names, 0.0)

    def has(self, keys: Sequence[Key]) -> list[bool]:
        return [place >= 0 for place in self._places(keys)]

    def seconds(self, keys: Sequence[Key], num_bytes: int) -> float:
        """How long getting these would take, of so many bytes in all; 0 where no speed is known."""
        each = num_bytes / max(1, len(keys))
        speeds = [self.shelves[place].bytes_per_second for place in self._places(keys) if place >= 0]
        return sum(each / speed for speed in speeds if speed)

    def put(self, key: Key, page: Bytes) -> bool:
        kept = [self._put(shelf, key, page) for shelf in self.shelves]
        return any(kept)

    def get(self, key: Key, page: Bytes) -> bool:
        for place, shelf in enumerate(self.shelves):
            began = perf_counter()
            if shelf.get(key, page):
                self._got(shelf, page.nbytes, perf_counter() - began)
                for faster in self.shelves[:place]:
                    self._put(faster, key, page)
                return True
        return False

    def touch(self, keys: Sequence[Key]) -> None:
        for shelf in self.shelves:
            shelf.touch(keys)

    def delete(self, keys: Sequence[Key]) -> None:
        for shelf in self.shelves:
            shelf.delete(keys)

    def close(self) -> None:
        for shelf in self.shelves:
            shelf.close()

    def _places(self, keys: Sequence[Key]) -> list[int]:
        """Of each page the first shelf that has it, -1 where none does."""
        places = [-1] * len(keys)
        for number, shelf in enumerate(self.shelves):
            missing = [index for index, place in enumerate(places) if place < 0]
            for index, there in zip(missing, shelf.has([keys[index] for index in missing]), strict=True):
                places[index] = number if there else -1
        return places

    def _put(self, shelf: Shelf, key: Key, page: Bytes) -> bool:
        began = perf_counter()
        kept = shelf.put(key, page)
        self.store_seconds[shelf.name] += perf_counter() - began
        self.stored_bytes[shelf.name] += page.nbytes if kept else 0
        return kept

    def _got(self, shelf: Shelf, num_bytes: int, seconds: float) -> None:
        self.hits[shelf.name] += 1
        self.loaded_bytes[shelf.name] += num_bytes
        self.load_seconds[shelf.name] += seconds
        share = min(1.0, num_bytes / _RECENT)
        now = num_bytes / max(seconds, 1e-9)
        shelf.bytes_per_second += (now - shelf.bytes_per_second) * (share if shelf.bytes_per_second else 1.0)
