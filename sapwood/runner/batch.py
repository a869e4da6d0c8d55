"""From a plan and the table to what one forward reads.

Suffix legend: T tokens, R rows, S slots, G KV groups, P pages of a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sapwood.attention.base import LONG, Batch, Limits, Long
from sapwood.base.kv import KVGroup
from sapwood.base.plan import Ints, Plan
from sapwood.runner.table import Table
from sapwood.runner.transfer import upload


@dataclass(frozen=True, eq=False)
class Shape:
    """A step apart from where its rows start, which only the device knows. All int32.

    `rows_T` names the row of each token; None where every row is one token. `spans` are the slots of the rows that are
    not steady, and where the host says that they start.
    """

    slots_R: Tensor
    counts_R: Tensor
    offsets_R1: Tensor
    slots_T: Tensor
    rows_T: Tensor | None
    spans: tuple[Tensor, Tensor] | None = None


class Batcher:
    """Makes batches. A step of the same steady rows as the one before uploads nothing and costs a few gathers."""

    def __init__(self, table: Table, groups: Sequence[KVGroup], *, max_tokens: int) -> None:
        self._table = table
        self._tables = table.tables_GSP.unbind(0)
        self._places_T = torch.arange(max_tokens, device=table.device)
        self._groups_G1 = torch.arange(len(groups), device=table.device)[:, None]
        self._page_sizes_G1 = torch.tensor([[group.page_size] for group in groups], device=table.device)
        self._steady: tuple[Ints, Shape] | None = None

    def make(self, plan: Plan) -> Batch:
        """The batch of a plan that the table has already taken in."""
        table, shape = self._table, self._shape(plan)
        if shape.spans is not None:
            slots_N, starts_N = shape.spans
            table.fed_S[slots_N] = starts_N
        starts_R = table.fed_S.index_select(0, shape.slots_R)
        if shape.rows_T is None:
            positions_T = starts_R.long()
        else:
            shifts_R = starts_R - shape.offsets_R1[:-1]
            positions_T = self._places_T[: len(shape.rows_T)] + shifts_R.index_select(0, shape.rows_T)
        pages_GT = table.tables_GSP[self._groups_G1, shape.slots_T, positions_T // self._page_sizes_G1]
        cells_GT = pages_GT * self._page_sizes_G1 + positions_T % self._page_sizes_G1
        return Batch(
            ids_T=table.tokens_SL[shape.slots_T, positions_T].long(),
            positions_T=positions_T,
            slots_R=shape.slots_R,
            starts_R=starts_R,
            counts_R=shape.counts_R,
            offsets_R1=shape.offsets_R1,
            tables_GSP=self._tables,
            cells_GT=cells_GT.unbind(0),
            limits=_limits(plan),
            long=_long(plan),
        )

    def _shape(self, plan: Plan) -> Shape:
        if plan.num_rows > plan.num_steady:
            return self._mixed(plan)
        if self._steady is None or self._steady[0] is not plan.steady:
            self._steady = plan.steady, self._single(plan.steady)
        return self._steady[1]

    def _single(self, steady: Ints) -> Shape:
        (slots_R,) = upload([steady], self._table.device)
        offsets_R1 = torch.arange(len(steady) + 1, dtype=torch.int32, device=slots_R.device)
        return Shape(slots_R, torch.ones_like(slots_R), offsets_R1, slots_T=slots_R, rows_T=None)

    def _mixed(self, plan: Plan) -> Shape:
        offsets = np.zeros(plan.num_rows + 1, dtype=np.int32)
        np.cumsum(plan.counts_R, out=offsets[1:])
        rows = np.repeat(np.arange(plan.num_rows, dtype=np.int32), plan.counts_R)
        columns = [plan.slots_R, plan.counts_R, offsets, plan.slots_R[rows], rows, plan.starts_R[plan.num_steady :]]
        slots_R, counts_R, offsets_R1, slots_T, rows_T, starts_N = upload(columns, self._table.device)
        return Shape(slots_R, counts_R, offsets_R1, slots_T, rows_T, (slots_R[plan.num_steady :], starts_N))


def _limits(plan: Plan) -> Limits:
    spans = int(np.count_nonzero(plan.counts_R[plan.num_steady :] > 1))
    return Limits(decodes=plan.num_rows - spans, spans=spans)


def _long(plan: Plan) -> tuple[Long, ...]:
    rows = np.flatnonzero(plan.counts_R[plan.num_steady :] >= LONG) + plan.num_steady
    if not len(rows):
        return ()
    firsts_R = np.cumsum(plan.counts_R) - plan.counts_R
    return tuple(
        Long(row, int(firsts_R[row]), int(plan.starts_R[row]), int(plan.counts_R[row])) for row in rows.tolist()
    )
