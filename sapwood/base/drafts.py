"""How drafts fare: how many were fed at each place behind a token, and how many of them were right."""

from __future__ import annotations

from itertools import accumulate

import msgspec


class Drafted(msgspec.Struct, frozen=True, array_like=True):
    """By place, the first draft behind a token first: how many were fed, and how many were accepted."""

    fed: list[int]
    accepted: list[int]

    @property
    def num_fed(self) -> int:
        return sum(self.fed)

    @property
    def num_accepted(self) -> int:
        return sum(self.accepted)


class Tally:
    """Counts runs of drafts by their lengths, and by how many of them were right."""

    __slots__ = ("_lengths", "_rights")

    def __init__(self, most: int) -> None:
        self._lengths = [0] * (most + 1)
        self._rights = [0] * (most + 1)

    def add(self, length: int, right: int) -> None:
        self._lengths[length] += 1
        self._rights[right] += 1

    def told(self) -> Drafted:
        """By place, up to the last one that was ever fed."""
        fed, accepted = (list(accumulate(counts[:0:-1]))[::-1] for counts in (self._lengths, self._rights))
        most = sum(count > 0 for count in fed)
        return Drafted(fed[:most], accepted[:most])
