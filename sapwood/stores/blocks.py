"""Blocks of host memory that pages pass through, and who has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sapwood.base.pages import Bytes, Moves, Pager
from sapwood.stores.base import Key


class Item(NamedTuple):
    """A page of one group on its way, and the block that it passes through."""

    key: Key
    group: int
    block: int


class Blocks:
    """A part of a pager's blocks, [`first`, `last`) of each group."""

    def __init__(self, pager: Pager, first: Sequence[int], last: Sequence[int]) -> None:
        self._pager = pager
        self.free = [list(range(low, high)) for low, high in zip(first, last, strict=True)]

    def fit(self, groups: Iterable[int]) -> bool:
        """Whether there is one for each of these groups, of which none is there twice."""
        return all(self.free[g] for g in groups)

    def take(self, key: Key, group: int) -> Item:
        return Item(key, group, self.free[group].pop())

    def give(self, items: Iterable[Item]) -> None:
        for item in items:
            self.free[item.group].append(item.block)

    def views(self, items: Iterable[Item]) -> list[Bytes]:
        """Where the pages are, in the host's memory."""
        return [self._pager.blocks[item.group][item.block] for item in items]

    def moves(self, items: Sequence[Item], pages: Sequence[int]) -> list[Moves]:
        """Between these blocks and pages, for each group."""
        found: list[tuple[list[int], list[int]]] = [([], []) for _ in self.free]
        for item, page in zip(items, pages, strict=True):
            found[item.group][0].append(page)
            found[item.group][1].append(item.block)
        return [Moves(*(np.array(column, np.int32) for column in both)) for both in found]
