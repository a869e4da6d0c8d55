"""Rows of the device's memory in which results of encoders lie, by the content that they were made of."""

from __future__ import annotations

from collections import OrderedDict
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

    def add(self, digest: bytes, length: int, number: int) -> Ints:
        """Rows for a new result, of which there are enough."""
        while len(self._free) < length:
            oldest = next(name for name, entry in self._entries.items() if entry.used != number)
            self._free.extend(self._entries.pop(oldest).rows.tolist())
            self.num_evicted += 1
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
