"""How values are spread, as plain numbers that cost next to nothing to count and travel as they are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec
import numpy as np


class Histogram(msgspec.Struct, array_like=True):
    """`counts[i]` values were at most `bounds[i]` and more than the bound before; the last count has no bound. `total` is the
    sum of all values."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> Histogram:
        """An empty one; `bounds` ascend."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def add(self, value: float, count: int = 1) -> None:
        """`value` was seen, so many times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def add_all(self, values: Sequence[float]) -> None:
        """Each of them was seen: the same, at the price of a few, however many they are."""
        places = np.searchsorted(self.bounds, values, side="left")
        counts = np.bincount(places, minlength=len(self.counts))
        self.counts = [count + int(more) for count, more in zip(self.counts, counts, strict=True)]
        self.total += sum(values)

    def copy(self) -> Histogram:
        """What it is now."""
        return Histogram(self.bounds, self.counts.copy(), self.total)
