"""Where runs of tokens stand in a text that grows: hash chains, as compressors have them.

A *place* is a number of tokens, and the run that ends there is the `length` tokens before it. Places whose runs have the
same hash are chained, the last one first:

    heads[hash] → place → before[place] → ... → 0

Two dozen bytes a token at most, and a few operations for each token that is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sapwood.base.plan import Ints, Longs

_FACTORS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1, 0x2545F491, 0x61C88647, 0x7FEB352D)
MOST_LENGTH = len(_FACTORS)
_FEW = 4  # new places that are chained one by one
_LEAST_BITS = 8
_FURTHEST = 32  # tokens that are compared at most


class Match(NamedTuple):
    """The `length` tokens before `place` are those that were looked for, or more of them than any run has."""

    place: int
    length: int


class Chains:
    """The places of one text, by the `length` tokens before each; `length` is 1 to MOST_LENGTH."""

    def __init__(self, length: int) -> None:
        assert 0 < length <= MOST_LENGTH
        self.length = length
        self._bits = _LEAST_BITS
        self._heads: Ints = np.zeros(1 << self._bits, np.int32)
        self._before: Ints = np.zeros(1 << self._bits, np.int32)
        self._count = 0  # places that are chained

    def extend(self, text: Ints, count: int) -> None:
        """Chain all places up to `count`; what was chained before of `text` must not have changed."""
        first = max(self._count + 1, self.length)
        if first > count:
            return
        if count >= len(self._before):
            self._grow(text, count)
        elif count - first < _FEW:
            for place in range(first, count + 1):
                key = self._key(text[place - self.length : place].tolist())
                self._before[place] = self._heads[key]
                self._heads[key] = place
        else:
            self._chain(text, first, count)
        self._count = count

    def matches(self, text: Ints, tail: Ints, most: int) -> Iterator[Match]:
        """The last places of `text`, up to `most` looked at, where it ends like `tail`; how far back, up to 32 tokens."""
        if len(tail) < self.length:
            return
        wanted: Ints = tail[-_FURTHEST:][::-1]
        place = int(self._heads[self._key(tail[-self.length :].tolist())])
        while place and most:
            found = text[max(place - len(wanted), 0) : place][::-1]
            differs = found != wanted[: len(found)]
            length = int(differs.argmax()) if differs.any() else len(found)
            if length >= self.length:  # else another run with the same hash
                yield Match(place, length)
            place, most = int(self._before[place]), most - 1

    def _key(self, run: list[int]) -> int:
        value = sum([token * factor for token, factor in zip(run, _FACTORS, strict=False)])
        return (value & 0xFFFFFFFF) >> (32 - self._bits)

    def _keys(self, text: Ints, first: int, count: int) -> Longs:
        """The hashes of places `first` to `count`."""
        start, number = first - self.length, count - first + 1
        long = text[start:count].astype(np.int64)
        # Wraps around, which the low bits do not mind.
        value = np.zeros(number, np.int64)
        for i, factor in enumerate(_FACTORS[: self.length]):
            value += long[i : i + number] * factor
        keys: Longs = (value & 0xFFFFFFFF) >> (32 - self._bits)
        return keys

    def _chain(self, text: Ints, first: int, count: int) -> None:
        keys = self._keys(text, first, count)
        places = np.arange(first, count + 1, dtype=np.int32)
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        before = np.empty_like(places)
        before[1:] = places[:-1]
        begins = np.concatenate([[True], keys[1:] != keys[:-1]])
        before[begins] = self._heads[keys[begins]]
        self._before[places] = before
        ends = np.concatenate([keys[1:] != keys[:-1], [True]])
        self._heads[keys[ends]] = places[ends]

    def _grow(self, text: Ints, count: int) -> None:
        """Make room for twice as many places, and chain all anew."""
        self._bits = max(_LEAST_BITS, (2 * count).bit_length())
        self._heads = np.zeros(1 << self._bits, np.int32)
        self._before = np.zeros(2 * count + 1, np.int32)
        self._chain(text, self.length, count)
