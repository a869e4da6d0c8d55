"""What a step does around the model, as launches whose sizes a host knows: finding out what to compute, and taking in
the tokens that were drawn. What stands in a frame is said by `sapwood.runner.frame`, `sapwood.runner.batch_cpu` does the same.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton.jit import jit

_NUMBERS = ["num_rows", "num_changes", "num_tokens", "num_heads", "num_slots", "num_pages", "nobody", "length"]
_POINTERS = [
    "slots_R",
    "told_R",
    "counts_R",
    "heads_R",
    "places_R",
    "kinds_R",
    "entries_C",
    "pages_C",
    "starts_R",
    "offsets_R1",
]
_POINTERS += ["last_N", "slots_N", "draws_N", "ends_N", "drawn_N", "ids_T", "positions_T", "cells_GT"]
"""What varies from step to step, the pointers by how they are aligned: no kernel is compiled again for that."""


@jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_POINTERS)
def take_rows(
    slots_R,
    told_R,
    counts_R,
    heads_R,
    places_R,
    kinds_R,
    entries_C,
    pages_C,
    fed_S,
    tables_GSP,
    starts_R,
    offsets_R1,
    last_N,
    slots_N,
    draws_N,
    ends_N,
    num_rows,
    num_changes,
    nobody,
    TOLD_BY_DEVICE: tl.constexpr,
    NO_ENTRY: tl.constexpr,
    NONE: tl.constexpr,
    DRAWN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn pages, find where rows start and end, and what their heads need. NONE and DRAWN are kinds.

    Grid (1 + ceil(C / BLOCK),): the first program does all rows (BLOCK is enough for them), the others the changes. A
    change is used up: its entry becomes NO_ENTRY, so that a frame may be run again.
    """
    i = tl.arange(0, BLOCK)
    program = tl.program_id(0)
    if program > 0:
        place = (program - 1) * BLOCK + i
        entry = tl.load(entries_C + place, mask=place < num_changes, other=NO_ENTRY)
        page = tl.load(pages_C + place, mask=entry != NO_ENTRY, other=0)
        tl.store(tables_GSP + entry, page, mask=entry != NO_ENTRY)
        tl.store(entries_C + place, NO_ENTRY, mask=entry != NO_ENTRY)
        return
    inside = i < num_rows
    slot = tl.load(slots_R + i, mask=inside, other=nobody)
    told = tl.load(told_R + i, mask=inside, other=0)
    count = tl.load(counts_R + i, mask=inside, other=0)
    start = tl.where(told == TOLD_BY_DEVICE, tl.load(fed_S + slot, mask=inside, other=0), told)
    end = start + count
    tl.store(fed_S + slot, end, mask=inside & (count > 0))
    offset = tl.cumsum(count, axis=0)
    tl.store(starts_R + i, start, mask=inside)
    tl.store(offsets_R1 + i, offset - count, mask=inside)
    tl.store(offsets_R1 + 1 + i, offset, mask=i == num_rows - 1)
    heads = tl.load(heads_R + i, mask=inside, other=0)
    place = tl.load(places_R + i, mask=inside, other=NO_ENTRY)
    kind = tl.load(kinds_R + i, mask=inside, other=NONE)
    # A row without heads may have the place of one of padding.
    for number in range(0, tl.maximum(tl.max(heads, axis=0), 1)):
        there = inside & (place != NO_ENTRY) & (number < tl.maximum(heads, 1))
        back = heads - 1 - number  # from the row's last head
        tl.store(last_N + place + number, tl.where(kind != NONE, offset - 1 - back, 0).to(tl.int64), mask=there)
        tl.store(slots_N + place + number, tl.where(kind != NONE, slot, nobody), mask=there)
        tl.store(draws_N + place + number, tl.where(kind == DRAWN, slot, nobody), mask=there)
        tl.store(ends_N + place + number, tl.where(kind != NONE, end - back, 0), mask=there)


@jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_POINTERS)
def take_tokens(
    slots_R,
    starts_R,
    counts_R,
    offsets_R1,
    tokens_SL,
    length,
    tables_GSP,
    page_sizes_G,
    ids_T,
    positions_T,
    cells_GT,
    num_rows,
    num_tokens,
    num_slots,
    num_pages,
    G: tl.constexpr,
    SINGLE: tl.constexpr,
    LOG_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Id, position and cells of each token. Grid (ceil(T / BLOCK),). SINGLE: token t is row t, if it has one.

    A token of no row gets id 0, position 0, cell 0. 2**LOG_ROWS is more than the number of rows.
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    if SINGLE:
        row = token
        known = inside & (tl.load(counts_R + token, mask=inside, other=0) > 0)
    else:
        # The last row that begins at or before the token.
        row = token * 0
        for k in tl.static_range(LOG_ROWS):
            probe = row + (1 << (LOG_ROWS - 1 - k))
            begins = tl.load(offsets_R1 + probe, mask=probe <= num_rows, other=2147483647)
            row = tl.where(begins <= token, probe, row)
        known = inside & (row < num_rows)
    slot = tl.load(slots_R + row, mask=known, other=0).to(tl.int64)
    position = tl.load(starts_R + row, mask=known, other=0) + token - tl.load(offsets_R1 + row, mask=known, other=0)
    position = tl.where(known, position, 0)
    id = tl.load(tokens_SL + slot * length + position, mask=known, other=0)
    tl.store(ids_T + token, id.to(tl.int64), mask=inside)
    tl.store(positions_T + token, position.to(tl.int64), mask=inside)
    for g in tl.static_range(G):
        size = tl.load(page_sizes_G + g)
        page = tl.load(tables_GSP + (g * num_slots + slot) * num_pages + position // size, mask=known, other=0)
        cell = tl.where(known, page.to(tl.int64) * size + position % size, 0)
        tl.store(cells_GT + g * num_tokens.to(tl.int64) + token, cell, mask=inside)


@jit(do_not_specialize=[*_NUMBERS, "kind"], do_not_specialize_on_alignment=_POINTERS)
def settle_rows(
    slots_R,
    heads_R,
    places_R,
    kinds_R,
    ends_N,
    drawn_N,
    tokens_SL,
    length,
    fed_S,
    num_rows,
    kind,
    REJECTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What rows of `kind` yield of the tokens drawn at their heads, up to the first that differs from the draft fed there.

    Yielded tokens are written to the table, the other draws become REJECTED, and `fed_S` becomes true. Grid
    (ceil(R / BLOCK),).
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < num_rows
    mine = inside & (tl.load(kinds_R + i, mask=inside, other=0) == kind)
    slot = tl.load(slots_R + i, mask=mine, other=0).to(tl.int64)
    heads = tl.load(heads_R + i, mask=mine, other=0)
    place = tl.load(places_R + i, mask=mine, other=0)
    going = mine
    yielded = heads * 0
    for number in range(0, tl.max(heads, axis=0)):
        there = mine & (number < heads)
        now = there & going
        end = tl.load(ends_N + place + number, mask=now, other=0)
        drawn = tl.load(drawn_N + place + number, mask=now, other=0)
        draft = tl.load(tokens_SL + slot * length + end, mask=now, other=0)
        tl.store(tokens_SL + slot * length + end, tl.maximum(drawn, 0), mask=now)
        tl.store(drawn_N + place + number, REJECTED, mask=there & (going == 0))
        yielded += now.to(tl.int32)
        going = now & (draft == drawn)
    fed = tl.load(fed_S + slot, mask=mine, other=0)
    tl.store(fed_S + slot, fed - (heads - yielded), mask=mine & (yielded < heads))
