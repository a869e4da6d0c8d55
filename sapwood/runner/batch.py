"""From a frame and the table to what one forward reads.

Suffix legend: T tokens, R rows, N heads (positions whose logits are wanted), S slots, G KV groups, P pages of a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sapwood.attention.base import Batch, RowLimits, Shared, Spans
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup
from sapwood.base.plan import Plan
from sapwood.device import abilities_of
from sapwood.runner import batch_cpu
from sapwood.runner.frame import Frame, Kind
from sapwood.runner.sight import Sight
from sapwood.runner.table import Table


@dataclass(frozen=True, eq=False)
class Heads:
    """The positions whose logits are wanted. int32 but `last_N`.

    `last_N` (int64) is the token of each in the step, `slots_N` its slot, `ends_N` where the token drawn from it will
    stand, `draws_N` the slot by whose settings it is drawn at once, that of nobody where it is not.
    """

    last_N: Tensor
    slots_N: Tensor
    draws_N: Tensor
    ends_N: Tensor


def spans_of(plan: Plan) -> Spans | None:
    """What the host knows of the rows after the steady ones; None if there are none."""
    counts = plan.counts_R[plan.num_steady :]
    if not len(counts):
        return None
    ends = (plan.starts_R[plan.num_steady :] + counts)[counts > 1]
    return Spans(plan.num_steady, len(counts), int(counts.sum()), int(counts.max()), len(ends), int(ends.sum()))


class Batcher:
    """Makes batches, and moves the table on: pages are turned, and `fed` becomes what it is after the step.

    Nothing is read on the host, and sizes follow from the frame's alone, so that all of it may be part of a graph.
    """

    def __init__(self, table: Table, groups: Sequence[KVGroup], sight: Sight | None = None) -> None:
        self._table, self._sight = table, sight
        self._tables = table.tables_GSP.unbind(0)
        self._page_sizes_G = torch.tensor([group.page_size for group in groups], dtype=torch.int32, device=table.device)
        if Ability.TRITON in abilities_of(table.device):
            from sapwood.runner import batch_triton

            self._fill, self._settle = batch_triton.fill, batch_triton.settle
        else:
            self._fill, self._settle = batch_cpu.fill, batch_cpu.settle

    def make(
        self,
        frame: Frame,
        num_tokens: int,
        *,
        limits: RowLimits,
        shared: Shared | None = None,
        spans: Spans | None = None,
    ) -> tuple[Batch, Heads]:
        """The batch of a frame, padded to `num_tokens`."""
        table, device, groups = self._table, self._table.device, len(self._tables)
        new = torch.empty(4, max(frame.num_rows, frame.num_heads) + 1, dtype=torch.int32, device=device)
        offsets_R1, starts_R = new[0, : frame.num_rows + 1], new[1, : frame.num_rows]
        slots_N, draws_N = new[2, : frame.num_heads], new[3, : frame.num_heads]
        heads = Heads(
            torch.empty(frame.num_heads, dtype=torch.int64, device=device),
            slots_N,
            draws_N,
            torch.empty_like(slots_N),
        )
        tokens = torch.empty(2 + groups, num_tokens, dtype=torch.int64, device=device)
        single = limits.spans == 0 and not frame.drafted
        self._fill(table, self._page_sizes_G, frame, starts_R, offsets_R1, heads, tokens, single)
        rows = frame.columns()
        batch = Batch(
            ids_T=tokens[0],
            positions_T=tokens[1],
            slots_R=rows.slots_R,
            starts_R=starts_R,
            counts_R=rows.counts_R,
            heads_R=rows.heads_R if frame.drafted else None,
            seconds_S=table.seconds_S,
            offsets_R1=offsets_R1,
            tables_GSP=self._tables,
            cells_GT=tokens[2:].unbind(0),
            limits=limits,
            shared=shared,
            spans=spans,
            seen=None if self._sight is None else self._sight.of(rows.slots_R, offsets_R1, tokens[1]),
            rotary_T=table.turned(rows.slots_R, offsets_R1, tokens[1]),
        )
        return batch, heads

    def settle(self, frame: Frame, heads: Heads, drawn_N: Tensor, kind: Kind) -> None:
        """Find what the rows of that kind yield of the tokens that were drawn at their heads (int32, -1 for none).

        These are written to the table, and `fed` becomes true where it had counted drafts that turn out to be wrong;
        the draws behind the first wrong draft become REJECTED.
        """
        self._settle(self._table, frame, heads, drawn_N, kind)
