"""Paged attention: writing keys and values to their cells, and attending over pages.

Keys and values of a layer lie as [page, KV head, cell of the page, D]: a head's share of a page is one run of memory.

`attend` is the only attention kernel. Its unit is a tile: up to QUERIES consecutive queries of one row, with the G
query heads of one KV head folded in, so that keys and values are read once for all of them. It is launched twice at
most: over one tile of one query per row for decode, with the positions cut into splits which `merge` joins; and over
the tiles of all longer spans. What each program does it reads from tensors on the device. The grid depends only on
sizes that a host knows without the lengths; programs that find nothing to do leave at once.

Scores are kept in base 2: `scale` comes multiplied by log2(e).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write(
    k_TKD,
    v_TKD,
    k_stride,
    v_stride,
    cells_T,
    keys,
    values,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy one token's keys and values (K * D elements, contiguous) to its cell. Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    cell = tl.load(cells_T + token)
    i = tl.arange(0, BLOCK)
    inside = i < K * D
    target = (cell // PAGE) * (K * PAGE * D) + (i // D) * (PAGE * D) + (cell % PAGE) * D + i % D
    k = tl.load(k_TKD + token * k_stride + i, mask=inside)
    v = tl.load(v_TKD + token * v_stride + i, mask=inside)
    tl.store(keys + target, k.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + target, v.to(values.dtype.element_ty), mask=inside)


@triton.jit
def _splits(low, high, most, least_blocks, N: tl.constexpr):
    """How positions [low, high) are split: (blocks of N per split, number of splits), at most `most` of them, and
    none but the last of fewer than `least_blocks`."""
    num_blocks = tl.cdiv(high, N) - low // N
    per_split = tl.maximum(tl.cdiv(num_blocks, most), least_blocks)
    return per_split, tl.cdiv(num_blocks, per_split)


@triton.jit
def _visible(start, query, count, QUERIES: tl.constexpr, WINDOW: tl.constexpr):
    """Positions [low, high) that any of a tile's queries sees; `query` is its first one's number in the row."""
    high = start + tl.minimum(query + QUERIES, count)
    low = tl.maximum(start + query - WINDOW + 1, 0) if WINDOW else start * 0
    return low, high


@triton.jit
def _absorb(
    best_M,
    total_M,
    acc_MD,
    q_MD,
    position_M,
    begin,
    end,
    low,
    high,
    table_P,
    keys,
    values,
    scale,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Online softmax over positions [begin, end), `begin` a multiple of N; the tile's sight is [low, high).

    `keys` and `values` point at the KV head in page 0. Positions that no query sees are not read: they may hold
    anything, and NaN times a weight of 0 is NaN.
    """
    d_D = tl.arange(0, D_PAD)
    for position in tl.range(begin, end, N):
        position_N = position + tl.arange(0, N)
        inside_N = position_N < high
        if WINDOW:
            inside_N = inside_N & (position_N >= low)
        if MASKED:
            page_N = tl.load(table_P + position_N // PAGE, mask=inside_N, other=0)
        else:
            page_N = tl.load(table_P + position_N // PAGE)
        cell_N = page_N.to(tl.int64) * (K * PAGE * D) + (position_N % PAGE) * D
        if MASKED or D != D_PAD:
            inside_ND = inside_N[:, None] & (d_D[None, :] < D)
            k_ND = tl.load(keys + cell_N[:, None] + d_D[None, :], mask=inside_ND, other=0.0)
            v_ND = tl.load(values + cell_N[:, None] + d_D[None, :], mask=inside_ND, other=0.0)
        else:
            k_ND = tl.load(keys + cell_N[:, None] + d_D[None, :])
            v_ND = tl.load(values + cell_N[:, None] + d_D[None, :])
        score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * scale
        if MASKED:
            seen_MN = position_N[None, :] <= position_M[:, None]
            if WINDOW:
                seen_MN = seen_MN & (position_N[None, :] > position_M[:, None] - WINDOW)
            score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        better_M = tl.maximum(best_M, tl.max(score_MN, axis=1))
        # A query that has seen nothing yet has best -inf, and -inf - -inf would be NaN.
        pivot_M = tl.where(better_M == float("-inf"), 0.0, better_M)
        weight_MN = tl.exp2(score_MN - pivot_M[:, None])
        shrink_M = tl.exp2(best_M - pivot_M)
        total_M = total_M * shrink_M + tl.sum(weight_MN, axis=1)
        acc_MD = acc_MD * shrink_M[:, None]
        acc_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision="ieee")
        best_M = better_M
    return best_M, total_M, acc_MD


@triton.jit(do_not_specialize=["least_blocks"])
def attend(
    q_THD,
    q_stride,
    keys,
    values,
    out_THD,
    partial_RHSD,
    lse_RHS,
    tile_rows,
    tile_queries,
    slots_R,
    starts_R,
    counts_R,
    offsets_R1,
    tables_SP,
    table_stride,
    scale,
    least_blocks,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    DECODE: tl.constexpr,
    QUERIES: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Attention of one tile and one KV head over one split. Grid (tiles, K, splits).

    DECODE: tile r is row r if that row has one query, else nothing, and the tile maps are not read. Otherwise tile t
    is the queries from `tile_queries[t]` on of row `tile_rows[t]`, a negative row is no tile, and there is one split.
    A tile with several splits leaves its weighted mean and the log2 of its sum of exponentials for `merge`.
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DECODE:
        row = tile
        query = tile * 0
    else:
        row = tl.load(tile_rows + tile)
        if row < 0:
            return
        query = tl.load(tile_queries + tile)
    count = tl.load(counts_R + row)
    if DECODE and count != 1:
        return
    start = tl.load(starts_R + row)
    low, high = _visible(start, query, count, QUERIES, WINDOW)
    per_split, num_splits = _splits(low, high, tl.num_programs(2), least_blocks, N)
    if split >= num_splits:
        return

    m_M = tl.arange(0, M)
    query_M = query + m_M // G  # beyond the row's last query: computed on zeros, not stored
    valid_M = (m_M < QUERIES * G) & (query_M < count)
    head_M = kv_head * G + m_M % G
    token_M = (tl.load(offsets_R1 + row) + query_M).to(tl.int64)
    d_D = tl.arange(0, D_PAD)
    inside_MD = valid_M[:, None] & (d_D[None, :] < D)
    q_MD = tl.load(q_THD + token_M[:, None] * q_stride + head_M[:, None] * D + d_D[None, :], mask=inside_MD, other=0.0)
    q_MD = q_MD.to(keys.dtype.element_ty)

    best_M = tl.full([M], float("-inf"), tl.float32)
    total_M = tl.zeros([M], tl.float32)
    acc_MD = tl.zeros([M, D_PAD], tl.float32)
    position_M = start + query_M
    table_P = tables_SP + tl.load(slots_R + row).to(tl.int64) * table_stride
    keys += kv_head * (PAGE * D)
    values += kv_head * (PAGE * D)
    begin = (low // N + split * per_split) * N
    end = tl.minimum(begin + per_split * N, high)
    if not DECODE and not WINDOW:
        # Whole blocks that every query of the tile sees need no mask.
        clear = tl.minimum(start + query + 1, end) // N * N
        best_M, total_M, acc_MD = _absorb(
            best_M, total_M, acc_MD, q_MD, position_M, begin, clear, low, high, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, False, N, D_PAD,
        )  # fmt: skip
        begin = clear
    best_M, total_M, acc_MD = _absorb(
        best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, high, table_P, keys, values, scale,
        K, D, PAGE, WINDOW, True, N, D_PAD,
    )  # fmt: skip

    # A split of a windowed tile may hold nothing that some query sees; its weight in the merge is then 0.
    acc_MD = acc_MD / tl.where(total_M > 0.0, total_M, 1.0)[:, None]
    if DECODE and num_splits > 1:
        place_M = (row.to(tl.int64) * (K * G) + head_M) * tl.num_programs(2) + split
        tl.store(partial_RHSD + place_M[:, None] * D + d_D[None, :], acc_MD, mask=inside_MD)
        tl.store(lse_RHS + place_M, best_M + tl.log2(total_M), mask=valid_M)
    else:
        place_M = token_M * (K * G) + head_M
        tl.store(out_THD + place_M[:, None] * D + d_D[None, :], acc_MD.to(out_THD.dtype.element_ty), mask=inside_MD)


@triton.jit(do_not_specialize=["num_splits", "least_blocks"])
def merge(
    partial_RHSD,
    lse_RHS,
    out_THD,
    starts_R,
    counts_R,
    offsets_R1,
    num_splits,
    least_blocks,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Join the splits of one row and head by their shares of the softmax's sum. Grid (R, H); `S` >= num_splits."""
    row, head = tl.program_id(0), tl.program_id(1)
    if tl.load(counts_R + row) != 1:
        return
    low, high = _visible(tl.load(starts_R + row), row * 0, 1, 1, WINDOW)
    _, used = _splits(low, high, num_splits, least_blocks, N)
    if used == 1:
        return
    s_S = tl.arange(0, S)
    d_D = tl.arange(0, D_PAD)
    place_S = (row.to(tl.int64) * tl.num_programs(1) + head) * num_splits + s_S
    lse_S = tl.load(lse_RHS + place_S, mask=s_S < used, other=float("-inf"))
    share_S = tl.exp2(lse_S - tl.max(lse_S, axis=0))
    inside_SD = (s_S[:, None] < used) & (d_D[None, :] < D)
    part_SD = tl.load(partial_RHSD + place_S[:, None] * D + d_D[None, :], mask=inside_SD, other=0.0)
    out_D = tl.sum(part_SD * share_S[:, None], axis=0) / tl.sum(share_S, axis=0)
    place = (tl.load(offsets_R1 + row).to(tl.int64) * tl.num_programs(1) + head) * D
    tl.store(out_THD + place + d_D, out_D.to(out_THD.dtype.element_ty), mask=d_D < D)
