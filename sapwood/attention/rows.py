"""A step's rows one by one, for what is slow and plainly right.

Suffix legend: T tokens of the step, N tokens of one row, L positions that the row's tokens may see, S slots, P pages of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sapwood.attention.base import Batch
from sapwood.base.kv import Heads, KVGroup


@dataclass(frozen=True, eq=False)
class Row:
    """One row's tokens [first, last) of the step, the cells of the positions they see, who sees which, and from how far."""

    first: int
    last: int
    cells_L: Tensor
    seen_NL: Tensor
    distance_NL: Tensor


class RowsOf:
    """The rows of the steps of one KV group, the `index`-th of a batch; `cells_T` are those that the step's tokens write."""

    def __init__(self, group: KVGroup, index: int, device: torch.device) -> None:
        self._group, self._index, self._device = group, index, device
        self.rows: list[Row] = []

    def plan(self, batch: Batch) -> None:
        self.cells_T = batch.cells_GT[self._index]
        table_SP = batch.tables_GSP[self._index]
        offsets = batch.offsets_R1.tolist()
        rows = zip(batch.slots_R.tolist(), batch.starts_R.tolist(), batch.counts_R.tolist(), offsets, strict=False)
        self.rows = [
            self._row(table_SP[slot], start, count, first, batch) for slot, start, count, first in rows if count
        ]

    def ahead(self, batch: Batch) -> list[Row]:
        """Those of a step's rows in which some position sees others behind it."""
        ends_T = self._ends(batch)
        if ends_T is None or not ends_T.any():
            return []
        self.plan(batch)
        return [row for row in self.rows if ends_T[row.first : row.last].any()]

    def _ends(self, batch: Batch) -> Tensor | None:
        looks = isinstance(self._group.kind, Heads) and self._group.kind.ahead
        return batch.seen.ends_T if looks and batch.seen is not None else None

    def _row(self, table_P: Tensor, start: int, count: int, first: int, batch: Batch) -> Row:
        page_size, window = self._group.page_size, self._group.window
        oldest, end = self._group.kind.oldest, start + count
        positions_L = torch.arange(oldest(start), end, device=self._device)
        positions_N1 = torch.arange(start, end, device=self._device)[:, None]
        lasts_N1 = positions_N1
        if (ends_T := self._ends(batch)) is not None:
            lasts_N1 = torch.maximum(lasts_N1, ends_T[first : first + count, None] - 1)
        seen_NL = positions_L <= lasts_N1
        if window is not None:
            firsts_N = torch.tensor([oldest(position) for position in range(start, end)], device=self._device)
            seen_NL &= positions_L >= firsts_N[:, None]
        cells_L = table_P[positions_L // page_size].long() * page_size + positions_L % page_size
        return Row(first, first + count, cells_L, seen_NL, positions_N1 - positions_L)
