"""The launches that make a batch on CUDA: `sapwood.runner.batch` with the kernels of `sapwood.kernels.triton.step`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
from torch import Tensor

from sapwood.kernels.triton import step
from sapwood.runner.frame import NO_ENTRY, REJECTED, TOLD_BY_DEVICE, Frame, Kind
from sapwood.runner.table import Table

if TYPE_CHECKING:
    from sapwood.runner.batch import Heads

_TOKENS = _ROWS = 128  # of one program


def fill(
    table: Table,
    page_sizes_G: Tensor,
    frame: Frame,
    starts_R: Tensor,
    offsets_R1: Tensor,
    heads: Heads,
    tokens: Tensor,
    single: bool,
) -> None:
    rows = frame.columns()
    entries_C, pages_C = frame.changes()
    tables_GSP, tokens_SL = table.tables_GSP, table.tokens_SL
    num_groups, num_slots, num_pages = tables_GSP.shape
    # Of the table's size, not of the step's (unless padding goes beyond it): each size is compiled.
    most_rows = max(num_slots - 1, frame.num_rows)
    block = max(64, triton.next_power_of_2(most_rows))
    if frame.drafted:  # else each head belongs to a row, be it one of padding
        heads.last_N.zero_()
        heads.ends_N.zero_()
        heads.slots_N.fill_(table.nobody)
        heads.draws_N.fill_(table.nobody)
    step.take_rows[(1 + triton.cdiv(len(entries_C), block),)](
        rows.slots_R, rows.told_R, rows.counts_R, rows.heads_R, rows.places_R, rows.kinds_R,
        entries_C, pages_C, table.fed_S, tables_GSP,
        starts_R, offsets_R1, heads.last_N, heads.slots_N, heads.draws_N, heads.ends_N,
        frame.num_rows, len(entries_C), table.nobody,
        TOLD_BY_DEVICE=TOLD_BY_DEVICE, NO_ENTRY=NO_ENTRY, NONE=int(Kind.NONE), DRAWN=int(Kind.DRAWN),
        BLOCK=block, num_warps=max(2, min(16, block // 128)),
    )  # fmt: skip
    num_tokens = tokens.shape[1]
    slots_R, counts_R = rows.slots_R, rows.counts_R
    step.take_tokens[(triton.cdiv(num_tokens, _TOKENS),)](
        slots_R, starts_R, counts_R, offsets_R1, tokens_SL, tokens_SL.shape[1], tables_GSP, page_sizes_G,
        tokens[0], tokens[1], tokens[2:], frame.num_rows, num_tokens, num_slots, num_pages,
        G=num_groups, SINGLE=single, LOG_ROWS=most_rows.bit_length(), BLOCK=_TOKENS, num_warps=4,
    )  # fmt: skip


def settle(table: Table, frame: Frame, heads: Heads, drawn_N: Tensor, kind: Kind) -> None:
    rows, tokens_SL = frame.columns(), table.tokens_SL
    step.settle_rows[(triton.cdiv(frame.num_rows, _ROWS),)](
        rows.slots_R, rows.heads_R, rows.places_R, rows.kinds_R, heads.ends_N, drawn_N, tokens_SL, tokens_SL.shape[1],
        table.fed_S, frame.num_rows, int(kind), REJECTED=REJECTED, BLOCK=_ROWS, num_warps=4,
    )  # fmt: skip
