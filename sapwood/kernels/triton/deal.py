"""What the programs of attention shall do, dealt out on the device once per step, so that launches depend on no length.

An item is a tile of queries (or of members of a shared run) over a part of the positions that they see. Its ITEM words:

    first     its first token of the step; of a shared run, its first membership
    count     queries or members; 0 where there is nothing to do
    position  of its first query
    slot      whose page table holds the positions
    begin     first position of the part; a block may start there
    end       the position after its last
    parts     0: the item has all that its queries see, and writes the output. Otherwise it leaves a part to be merged,
              and the first item of a tile says of how many, while the others say minus how far after the first they are
    origin    of rows that yield: the number of its first query; of spans: the position of the row's first token

Rows share the device by their lengths: `most` parts beyond one for each tile are handed out so that all are of about the
same size, none of them of fewer than `least` blocks. Each kernel is one program: a few microseconds, whatever the step.

Suffix legend: R rows, I tiles of shared runs, J items, M memberships, K KV heads; W words of an item. `arrived_JK` are
what `paged` counts arrived parts with; None where nothing is ever merged.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.blocks import oldest
from sapwood.kernels.triton.jit import jit

ITEM = 8
"""Words of an item."""

_NUMBERS = ["num_rows", "num_tiles", "num_items", "most", "least"]
_POINTERS = [
    "slots_R",
    "starts_R",
    "counts_R",
    "heads_R",
    "offsets_R1",
    "privates_Q",
    "lows_I",
    "highs_I",
    "firsts_I",
    "sizes_I",
]
_POINTERS += ["slots_I", "places_M2", "used_1"]
"""What varies from step to step, the pointers by how they are aligned: no kernel is compiled again for that."""


@jit
def _share_out(blocks, tiles, most, least):
    """(parts of each tile, blocks of each part) for rows of `tiles` tiles over `blocks` blocks each."""
    chunk = tl.maximum(tl.cdiv(tl.sum(blocks * tiles, axis=0), most), least)
    # To the nearest number: a row hardly longer than a chunk is not worth a merge. No more than one part per tile
    # comes on top of the `most`.
    parts = tl.where(blocks * tiles > 0, tl.maximum((blocks + chunk // 2) // chunk, 1), 0)
    return parts, tl.cdiv(blocks, tl.maximum(parts, 1))


@jit
def _write(items_JW, item, first, count, position, slot, begin, end, parts, origin, mask):
    place = items_JW + item * 8
    tl.store(place, first, mask=mask)
    tl.store(place + 1, count, mask=mask)
    tl.store(place + 2, position, mask=mask)
    tl.store(place + 3, slot, mask=mask)
    tl.store(place + 4, begin, mask=mask)
    tl.store(place + 5, end, mask=mask)
    tl.store(place + 6, parts, mask=mask)
    tl.store(place + 7, origin, mask=mask)


@jit
def _clear(items_JW, arrived_JK, used, num_items, K: tl.constexpr, PAD: tl.constexpr):
    """The items from `used` on have nothing to do, and of no tile has a part arrived."""
    for item in range(used, num_items, PAD):
        item_J = item + tl.arange(0, PAD)
        tl.store(items_JW + item_J * 8 + 1, 0, mask=item_J < num_items)
    if arrived_JK is not None:
        for place in range(0, used * K, PAD):
            place_X = place + tl.arange(0, PAD)
            tl.store(arrived_JK + place_X, 0, mask=place_X < used * K)


@jit
def _yielding(row, inside, count, heads_R):
    """Which rows have one token, or heads alone."""
    yields = count == 1
    if heads_R is not None:
        yields = yields | ((count > 0) & (tl.load(heads_R + row, mask=inside, other=0) == count))
    return yields


@jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_POINTERS)
def deal_rows(
    slots_R,
    starts_R,
    counts_R,
    heads_R,
    offsets_R1,
    privates_Q,
    items_JW,
    arrived_JK,
    num_rows,
    num_items,
    most,
    least,
    WINDOW: tl.constexpr,
    SHARED: tl.constexpr,
    SPANS: tl.constexpr,
    QUERIES: tl.constexpr,
    N: tl.constexpr,
    ALIGN: tl.constexpr,
    K: tl.constexpr,
    PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rows in tiles of QUERIES, those of a row that see most first. Grid (1,).

    With SPANS these are the rows of several tokens, else those of one token, and of heads alone where `heads_R` is given.
    With SHARED a row begins at the `privates_Q` of its queries. `num_items` is the number of tiles plus `most` at least;
    with `most` 0 and `least` beyond any length, tiles stay whole.
    """
    if PDL:
        pdl.join()
    row = tl.arange(0, PAD)
    inside = row < num_rows
    start = tl.load(starts_R + row, mask=inside, other=0)
    count = tl.load(counts_R + row, mask=inside, other=0)
    first = tl.load(offsets_R1 + row, mask=inside, other=0)
    slot = tl.load(slots_R + row, mask=inside, other=0)
    yields = _yielding(row, inside, count, heads_R)
    mine = (count > 0) & (yields == 0) if SPANS else yields
    tiles = tl.where(mine, tl.cdiv(count, QUERIES), 0)
    # Queries are the first tokens of a step. Where each row has one, they are numbered like rows, which there may be fewer of.
    origin = row if heads_R is None else first
    low = tl.zeros([PAD], tl.int32)
    if SHARED:
        low = tl.load(privates_Q + origin, mask=mine, other=0)
    seen = start + count - low
    if WINDOW:
        seen = tl.minimum(seen, (WINDOW if WINDOW > 0 else -WINDOW) + QUERIES + ALIGN)
    parts, per_part = _share_out(tl.cdiv(seen, N), tiles, tl.maximum(most, 1), least)
    merged = parts > 1
    if SHARED:
        merged = merged | (low > 0)
    ends = tl.cumsum(tiles * parts, axis=0)
    item = ends - tiles * parts
    for number in range(0, tl.max(tiles * parts, axis=0)):
        part = number % tl.maximum(parts, 1)
        query = (tiles - 1 - number // tl.maximum(parts, 1)) * QUERIES
        queries = tl.minimum(count - query, QUERIES)
        position = start + query
        if WINDOW:
            low = oldest(position, WINDOW) // ALIGN * ALIGN
        begin = low + part * per_part * N
        end = tl.minimum(begin + per_part * N, position + queries)  # a part of a tile that sees little may be empty
        role = tl.where(merged, tl.where(part == 0, parts, -part), 0)
        there = number < tiles * parts
        before = start if SPANS else origin + query
        _write(items_JW, item + number, first + query, queries, position, slot, begin, end, role, before, there)
    _clear(items_JW, arrived_JK, tl.max(ends, axis=0), num_items, K, PAD)


@jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_POINTERS)
def deal_runs(
    lows_I,
    highs_I,
    firsts_I,
    sizes_I,
    slots_I,
    items_JW,
    places_M2,
    used_1,
    num_tiles,
    most,
    least,
    N: tl.constexpr,
    MEMBERS: tl.constexpr,
    PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Tiles of shared runs, of up to MEMBERS queries. Grid (tiles,): the first program writes the items, each the
    memberships of its tile.

    The first `used_1` items have something to do. Of each membership `places_M2` is its tile's first item times MEMBERS
    plus its place in the tile, and the tile's number of parts.
    """
    if PDL:
        pdl.join()
    tile = tl.arange(0, PAD)
    inside = tile < num_tiles
    size = tl.load(sizes_I + tile, mask=inside, other=0)
    inside = size > 0
    low = tl.load(lows_I + tile, mask=inside, other=0)
    high = tl.load(highs_I + tile, mask=inside, other=0)
    first = tl.load(firsts_I + tile, mask=inside, other=0)
    parts, per_part = _share_out(tl.cdiv(high - low, N), inside.to(tl.int32), most, least)
    ends = tl.cumsum(parts, axis=0)
    item = ends - parts
    if tl.program_id(0) == 0:
        slot = tl.load(slots_I + tile, mask=inside, other=0)
        for part in range(0, tl.max(parts, axis=0)):
            begin = low + part * per_part * N
            end = tl.minimum(begin + per_part * N, high)
            _write(items_JW, item + part, first, size, high, slot, begin, end, parts, tile, part < parts)
        tl.store(used_1, tl.max(ends, axis=0))
    mine = tile == tl.program_id(0)
    number = tl.arange(0, MEMBERS)
    there = number < tl.sum(tl.where(mine, size, 0), axis=0)
    member = tl.sum(tl.where(mine, first, 0), axis=0) + number
    tl.store(places_M2 + member * 2, tl.sum(tl.where(mine, item, 0), axis=0) * MEMBERS + number, mask=there)
    tl.store(places_M2 + member * 2 + 1, number * 0 + tl.sum(tl.where(mine, parts, 0), axis=0), mask=there)
