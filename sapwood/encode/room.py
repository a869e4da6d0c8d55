"""Rows of the device's memory in which results of encoders lie, by the content that they were made of, and the host's memory behind it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sapwood.base.plan import Ints


@dataclass(eq=False, slots=True)
class Entry:
    """A result: the rows where it lies, in order, and the last plan that reads them."""

    rows: Ints
    used: int


class Room:
    """`size` rows, numbered from 1. The results that were used longest ago make way; those of the plan that is being made do not."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_evicted = 0
        self._free = list(range(size, 0, -1))
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()  # least recently used first

    def get(self, digest: bytes) -> Entry | None:
        return self._entries.get(digest)

    def use(self, digest: bytes, number: int) -> Ints:
        """The rows of a result that is there, which plan `number` reads."""
        entry = self._entries[digest]
        entry.used = number
        self._entries.move_to_end(digest)
        return entry.rows

    def taken(self, number: int) -> int:
        """Rows of results that plan `number` reads."""
        return sum(len(entry.rows) for entry in self._entries.values() if entry.used == number)

    def add(self, digest: bytes, length: int, number: int, leaves: Callable[[bytes, Ints], None] | None = None) -> Ints:
        """Rows for a new result, of which there are enough. `leaves` is told of those that make way."""
        while len(self._free) < length:
            oldest = next(name for name, entry in self._entries.items() if entry.used != number)
            gone = self._entries.pop(oldest).rows
            self._free.extend(gone.tolist())
            self.num_evicted += 1
            if leaves is not None:
                leaves(oldest, gone)
        rows = np.array(self._free[len(self._free) - length :], np.int32)
        del self._free[len(self._free) - length :]
        self._entries[digest] = Entry(rows, number)
        return rows

    def clear(self) -> int:
        """Nothing that was made is to be used any more; how much it was."""
        count = len(self._entries)
        self._entries.clear()
        self._free = list(range(self.size, 0, -1))
        return count


class Attic:
    """The host's memory for results that had to make way: `size` positions, and while one is on its way back its own besides; of those that
    came first the first to go. Each has a number, by which the device knows it."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.taken = 0
        self._next = 0
        self._entries: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._entries

    def put(self, digest: bytes, length: int) -> tuple[int | None, list[int]]:
        """The number of a result that is kept from now on, None if it is larger than all there is, and those of results that go."""
        if length > self.size:
            return None, []
        dropped = []
        while self.taken + length > self.size:
            _, (number, size) = self._entries.popitem(last=False)
            dropped.append(number)
            self.taken -= size
        self._next += 1
        self._entries[digest] = self._next, length
        self.taken += length
        return self._next, dropped

    def take(self, digest: bytes) -> int | None:
        """The number of a result that is kept no longer; None if it is not."""
        if digest not in self._entries:
            return None
        number, length = self._entries.pop(digest)
        self.taken -= length
        return number

    def clear(self) -> int:
        """As `Room.clear`."""
        count = len(self._entries)
        self._entries.clear()
        self.taken = 0
        return count
