"""Ranks of one host on its processor: tensors through memory that they share.

Each writes what it has to a slot of its own and says so; when all have, each adds all of them up. There are two slots, used by turns:
who says that it has written for the next exchange has read what there was of the last one.

Suffix legend: T tokens, E hidden size, V vocabulary, W the part of it that one rank has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sapwood.parallel.segment import SLOT_BYTES, Segment


class SharedMesh:
    """Keeps the protocol `Mesh`, of all ranks or those of `members` that this one is among. Raises Lost where a rank is."""

    def __init__(self, segment: Segment, members: Sequence[int] | None = None) -> None:
        self._members = range(segment.size) if members is None else members
        self.rank, self.size = self._members.index(segment.rank), len(self._members)
        self._segment, self._count = segment, 0
        self._slots = [
            [torch.frombuffer(segment.slot(rank, turn), dtype=torch.uint8) for rank in self._members]
            for turn in range(2)
        ]

    def sum(self, x_TE: Tensor) -> Tensor:
        x_TE = x_TE.contiguous()
        flat = x_TE.view(-1)
        most = SLOT_BYTES // x_TE.itemsize
        for first in range(0, len(flat), most):
            part = flat[first : first + most]
            summands = self._exchange(part, [len(part)] * self.size)
            torch.add(summands[0], summands[1], out=part)
            for summand in summands[2:]:
                part += summand
        return x_TE

    def gather(self, x_TW: Tensor, widths: Sequence[int]) -> Tensor:
        x_TW = x_TW.contiguous()
        whole_TV = x_TW.new_empty(len(x_TW), sum(widths))
        ranks = whole_TV.split(list(widths), dim=1)
        most = max(1, SLOT_BYTES // (max(widths) * x_TW.itemsize))
        assert max(widths) * x_TW.itemsize <= SLOT_BYTES, "a row fits a slot"
        for first in range(0, len(x_TW), most):
            part = x_TW[first : first + most]
            parts = self._exchange(part.view(-1), [len(part) * width for width in widths])
            for rank_TW, one in zip(ranks, parts, strict=True):
                rank_TW[first : first + most] = one.view(len(part), -1)
        return whole_TV

    def _exchange(self, mine: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Views of what each rank has, so many elements of each; until the exchange after the next."""
        slots = self._slots[self._count % 2]
        self._count += 1
        kind, itemsize = mine.dtype, mine.itemsize
        slots[self.rank][: mine.numel() * itemsize].view(kind).copy_(mine)
        self._segment.arrive(self._count, self._members)
        return [slot[: count * itemsize].view(kind) for slot, count in zip(slots, counts, strict=True)]
