"""Pages of several ranks on their way to stores and back.

A block of host memory has a row for a page of all ranks, a part for each in their order:

    block    [ rank 0's part | rank 1's part | ... ]

It lies in memory that they share, where each copies its own part; the first rank says when, and whoever stores or loads pages sees whole rows alone.
So a page is there for all ranks, or for none.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sapwood.base.errors import Lost
from sapwood.base.pages import Bytes, Moves, Pager, Rooms
from sapwood.executor.base import Executor
from sapwood.parallel.segment import Segment, unnamed

SAVE, LOAD = b"o", b"q"


class Layout(msgspec.Struct, frozen=True):
    """Blocks of each group, the bytes of a page of each by rank, and the file that they lie in."""

    path: str
    num_blocks: list[int]
    page_bytes: list[list[int]]

    def rows(self) -> list[Bytes]:
        """Of each group uint8 [blocks, bytes of a page in all ranks]."""
        sizes = [sum(one) for one in zip(*self.page_bytes, strict=True)]
        with Path(self.path).open("r+b") as file:
            memory = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        found, first = list[Bytes](), 0
        for count, size in zip(self.num_blocks, sizes, strict=True):
            found.append(memory[first : first + count * size].reshape(count, size))
            first += count * size
        return found

    def room(self, rows: Sequence[Bytes], rank: int) -> Rooms:
        """Makes a rank's part of the rows. Raises Lost for one that has pages of other sizes than it has said."""
        wanted = list(zip(self.num_blocks, self.page_bytes[rank], strict=True))

        def make(shapes: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
            if list(shapes) != wanted:
                raise Lost(f"pages of rank {rank} are of other sizes than it has said: {list(shapes)}, not {wanted}")
            firsts = [sum(sizes[g] for sizes in self.page_bytes[:rank]) for g in range(len(rows))]
            parts = zip(rows, firsts, self.page_bytes[rank], strict=True)
            return [row[:, first : first + size] for row, first, size in parts]

        return make


class RankPager:
    """Keeps the protocol `Pager` for all ranks: what the first, of `here`, is asked to copy, others are told to."""

    def __init__(
        self,
        here: Executor,
        segment: Segment,
        tell: Callable[[bytes, bytes, Callable[[], Any]], Any],
        num_blocks: Sequence[int],
        page_bytes: Sequence[list[int]],
    ) -> None:
        self._segment, self._tell, self._count = segment, tell, 0
        path, self.let_go = unnamed(
            sum(n * sum(one) for n, one in zip(num_blocks, zip(*page_bytes, strict=True), strict=True))
        )
        layout = Layout(str(path), list(num_blocks), list(page_bytes))
        self.blocks: Sequence[Bytes] = layout.rows()
        room = layout.room(self.blocks, 0)
        self._here: Pager = tell(b"p", msgspec.msgpack.encode(layout), lambda: here.pager(num_blocks, room))

    def save(self, moves: Sequence[Moves]) -> Any:
        return self._move(SAVE, moves, self._here.save)

    def load(self, moves: Sequence[Moves]) -> Any:
        return self._move(LOAD, moves, self._here.load)

    def done(self, handle: Any) -> bool:
        count, mine = handle
        return self._segment.all_moved(count) and self._here.done(mine)

    def _move(self, what: bytes, moves: Sequence[Moves], move: Callable[[Sequence[Moves]], Any]) -> Any:
        message = msgspec.msgpack.encode([(some.pages_M.tolist(), some.blocks_M.tolist()) for some in moves])
        self._count += 1
        return self._count, self._tell(what, message, lambda: move(moves))


class RankPages:
    """What another rank than the first does with its part."""

    def __init__(self, here: Executor, segment: Segment) -> None:
        self._here, self._segment = here, segment

    def open(self, message: bytes) -> None:
        layout = msgspec.msgpack.decode(message, type=Layout)
        rows = layout.rows()
        self._pager = self._here.pager(layout.num_blocks, layout.room(rows, self._segment.rank))

    def save(self, message: bytes) -> None:
        self._pager.save(_moves(message))
        self._segment.moved()

    def load(self, message: bytes) -> None:
        self._pager.load(_moves(message))
        self._segment.moved()


def _moves(message: bytes) -> list[Moves]:
    columns = msgspec.msgpack.decode(message, type=list[tuple[list[int], list[int]]])
    return [Moves(*(np.array(column, np.int32) for column in both)) for both in columns]
