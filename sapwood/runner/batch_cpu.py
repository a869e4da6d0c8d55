"""What makes a batch on a CPU: `sapwood.runner.batch` in numpy, on the tensors' own memory.

A step is some thirty operations on a few numbers, each of which numpy begins in a fifth of the time that PyTorch takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sapwood.base.plan import Ints, Longs
from sapwood.base.ragged import spread
from sapwood.runner.frame import NO_ENTRY, REJECTED, TOLD_BY_DEVICE, Columns, Frame, Kind
from sapwood.runner.table import Table

if TYPE_CHECKING:
    from sapwood.runner.batch import Heads


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
    rows = Columns(*(column.numpy() for column in frame.columns()))
    slots, counts, fed = rows.slots_R, rows.counts_R, table.fed_S.numpy()
    _turn_pages(table, frame)

    starts, offsets = starts_R.numpy(), offsets_R1.numpy()
    starts[:] = np.where(rows.told_R == TOLD_BY_DEVICE, fed[slots], rows.told_R)
    ends = starts + counts
    offsets[0] = 0
    counts.cumsum(out=offsets[1:])
    each_one = single and bool(counts.all())
    if each_one:
        fed[slots] = ends
    else:
        real = counts > 0
        fed[slots[real]] = ends[real]
    _fill_heads(rows, ends, offsets, heads, table.nobody, each_one)
    if each_one:
        _fill_tokens(table, page_sizes_G, slots, starts, tokens)
    else:
        rows_T, within_T = spread(counts)
        _fill_tokens(table, page_sizes_G, slots[rows_T], starts[rows_T] + within_T, tokens)


def _turn_pages(table: Table, frame: Frame) -> None:
    entries, pages = (column.numpy() for column in frame.changes())
    if len(entries):
        turned = entries != NO_ENTRY
        table.tables_GSP.numpy().reshape(-1)[entries[turned]] = pages[turned]
        entries.fill(NO_ENTRY)


def _fill_heads(rows: Columns[Ints], ends: Ints, offsets: Ints, heads: Heads, nobody: int, each_one: bool) -> None:
    last, owners, draws, at = (x_N.numpy() for x_N in (heads.last_N, heads.slots_N, heads.draws_N, heads.ends_N))
    slots, kinds = rows.slots_R, rows.kinds_R
    if each_one and len(at) == len(slots) and kinds.all():
        last[:], owners[:], at[:] = offsets[:-1], slots, ends
        draws[:] = np.where(kinds == Kind.DRAWN, slots, nobody)
        return
    last[:] = at[:] = 0
    owners[:] = draws[:] = nobody
    rows_N, within_N = spread(rows.heads_R)
    back_N = rows.heads_R[rows_N] - 1 - within_N  # from the last head of its row, for each
    to = rows.places_R[rows_N] + within_N
    last[to], at[to], owners[to] = offsets[1:][rows_N] - 1 - back_N, ends[rows_N] - back_N, slots[rows_N]
    draws[to] = np.where(kinds == Kind.DRAWN, slots, nobody)[rows_N]


def _fill_tokens(table: Table, page_sizes_G: Tensor, slots_T: Ints, places_T: Ints | Longs, tokens: Tensor) -> None:
    """Of the tokens of slots at places; what is left of `tokens` is padding."""
    num_tokens, tables = len(places_T), table.tables_GSP.numpy()
    ids_T, positions_T, *cells_GT = tokens.numpy()
    ids_T[:num_tokens] = table.tokens_SL.numpy()[slots_T, places_T]
    positions_T[:num_tokens] = places_T
    for group, (size, cells_T) in enumerate(zip(page_sizes_G.tolist(), cells_GT, strict=True)):
        indices_T, in_page_T = np.divmod(places_T, size)
        cells_T[:num_tokens] = tables[group, slots_T, indices_T]
        cells_T[:num_tokens] *= size
        cells_T[:num_tokens] += in_page_T
    if num_tokens < len(ids_T):
        tokens.numpy()[:, num_tokens:] = 0


def settle(table: Table, frame: Frame, heads: Heads, drawn_N: Tensor, kind: Kind) -> None:
    rows = frame.columns()
    tokens, drawn, ends = table.tokens_SL.numpy(), drawn_N.numpy(), heads.ends_N.numpy()
    mine = np.flatnonzero(rows.kinds_R.numpy() == kind)
    slots, places = rows.slots_R.numpy()[mine], rows.places_R.numpy()[mine]
    if frame.drafted:
        counts = rows.heads_R.numpy()[mine]
        rows_N, within_N = spread(counts)
        at = places[rows_N] + within_N
        wrong = (tokens[slots[rows_N], ends[at]] != drawn[at]) | (within_N == counts[rows_N] - 1)
        yielded = counts.copy()
        np.minimum.at(yielded, rows_N[wrong], within_N[wrong].astype(np.int32) + 1)
        table.fed_S.numpy()[slots] -= counts - yielded
        kept = within_N < yielded[rows_N]
        drawn[at[~kept]] = REJECTED
        slots, places = slots[rows_N[kept]], at[kept]
    tokens[slots, ends[places]] = np.maximum(drawn[places], 0)
