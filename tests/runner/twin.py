"""What `sapwood.runner.batch_cpu` and `sapwood.kernels.triton.step` do, plainly."""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.runner.batch import Heads
from sapwood.runner.frame import REJECTED, Frame, Kind
from sapwood.runner.table import Table


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
    """Without padding's tricks."""
    slots_R, told_R, counts_R, heads_R, places_R, kinds_R = frame.columns()
    entries_C, pages_C = frame.changes()
    turned = entries_C >= 0
    table.tables_GSP.view(-1)[entries_C[turned].long()] = pages_C[turned]
    entries_C.fill_(-1)
    starts_R.copy_(torch.where(told_R < 0, table.fed_S[slots_R.long()], told_R))
    ends_R = starts_R + counts_R
    real = counts_R > 0
    table.fed_S[slots_R[real].long()] = ends_R[real]
    offsets_R1[0] = 0
    torch.cumsum(counts_R, 0, dtype=torch.int32, out=offsets_R1[1:])

    heads.last_N.zero_()
    heads.ends_N.zero_()
    for slots_N in (heads.slots_N, heads.draws_N):
        slots_N.fill_(table.nobody)
    for row in (heads_R > 0).nonzero().flatten().tolist():
        count, place = int(heads_R[row]), int(places_R[row])
        mine = slice(place, place + count)
        within = torch.arange(count, device=table.device)
        heads.last_N[mine] = offsets_R1[row + 1] - count + within
        heads.ends_N[mine] = (ends_R[row] - count + 1 + within).int()
        heads.slots_N[mine] = slots_R[row]
        if kinds_R[row] == Kind.DRAWN:
            heads.draws_N[mine] = slots_R[row]

    ids_T, positions_T, cells_GT = tokens[0], tokens[1], tokens[2:]
    tokens.zero_()
    rows_T = torch.repeat_interleave(counts_R.long())
    known = len(rows_T)
    slots_T = slots_R[rows_T].long()
    positions_T[:known] = torch.arange(known, device=table.device) + (starts_R - offsets_R1[:-1])[rows_T]
    ids_T[:known] = table.tokens_SL[slots_T, positions_T[:known]]
    for group, cells_T in enumerate(cells_GT):
        size = int(page_sizes_G[group])
        pages_T = table.tables_GSP[group, slots_T, positions_T[:known] // size]
        cells_T[:known] = pages_T * size + positions_T[:known] % size


def settle(table: Table, frame: Frame, heads: Heads, drawn_N: Tensor, kind: Kind) -> None:
    """Row by row."""
    rows = frame.columns()
    for row in (rows.kinds_R == kind).nonzero().flatten().tolist():
        count, place, slot = int(rows.heads_R[row]), int(rows.places_R[row]), int(rows.slots_R[row])
        yielded = 0
        for head in range(place, place + count):
            drawn, end = drawn_N[head].clone(), int(heads.ends_N[head])
            yielded += 1
            right = bool(table.tokens_SL[slot, end] == drawn)
            table.tokens_SL[slot, end] = drawn.clamp(min=0)
            if not right:
                break
        drawn_N[place + yielded : place + count] = REJECTED
        table.fed_S[slot] -= count - yielded
