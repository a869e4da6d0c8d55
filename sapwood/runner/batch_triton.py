"""The launches that make a batch on CUDA: `sapwood.runner.batch` with the kernels of `sapwood.kernels.triton.step`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
from torch import Tensor

from sapwood.kernels.triton import step
from sapwood.runner.frame import Frame
from sapwood.runner.table import Table

if TYPE_CHECKING:
    from sapwood.runner.batch import Heads

_TOKENS = 128  # of one program


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
    slots_R, told_R, counts_R, places_R, kinds_R, entries_C, pages_C = frame.columns()
    tables_GSP, tokens_SL = table.tables_GSP, table.tokens_SL
    num_groups, num_slots, num_pages = tables_GSP.shape
    # Of the table's size, not of the step's (unless padding goes beyond it): each size is compiled.
    most_rows = max(num_slots - 1, frame.num_rows)
    block = max(64, triton.next_power_of_2(most_rows))
    step.take_rows[(1 + triton.cdiv(len(entries_C), block),)](
        slots_R, told_R, counts_R, places_R, kinds_R, entries_C, pages_C, table.fed_S, tables_GSP,
        starts_R, offsets_R1, heads.last_N, heads.slots_N, heads.draws_N, heads.ends_N,
        frame.num_rows, len(entries_C), table.nobody,
        BLOCK=block, num_warps=max(2, min(16, block // 128)),
    )  # fmt: skip
    num_tokens = tokens.shape[1]
    step.take_tokens[(triton.cdiv(num_tokens, _TOKENS),)](
        slots_R, starts_R, counts_R, offsets_R1, tokens_SL, tokens_SL.shape[1], tables_GSP, page_sizes_G,
        tokens[0], tokens[1], tokens[2:], frame.num_rows, num_tokens, num_slots, num_pages,
        G=num_groups, SINGLE=single, LOG_ROWS=most_rows.bit_length(), BLOCK=_TOKENS, num_warps=4,
    )  # fmt: skip


def put(table: Table, drawn_N: Tensor, heads: Heads) -> None:
    tokens_SL, num_heads = table.tokens_SL, len(drawn_N)
    step.put_tokens[(triton.cdiv(num_heads, _TOKENS),)](
        drawn_N, heads.draws_N, heads.ends_N, tokens_SL, tokens_SL.shape[1], num_heads, table.nobody,
        BLOCK=_TOKENS, num_warps=4,
    )  # fmt: skip
