"""Attention over pages.

Keys and values of a layer lie as [page, KV head, cell of the page, D]: a head's share of a page is one run of memory.

`attend` is the only attention kernel. Its unit is an item (`sapwood.kernels.triton.deal`): a tile of queries, with the G
query heads of one KV head folded in, over a part of the positions, so that keys and values are read once for all of
them. It is launched at most three times: over rows of one token, over longer spans, and over runs of positions that
several rows share. Where a tile has several parts, the program that leaves the last of them joins all, and the parts of
the runs that a row shares with them: a launch of its own would take longer than that. Whichever program it is, it reads
the parts in the same order, so that results do not depend on it. Grids depend only on sizes that a host knows without
the lengths; programs that find nothing to do leave at once.

What a tile makes of the positions is in `sapwood.kernels.triton.blocks`.

Suffix legend: T tokens, H query heads, K KV heads, X = H + 2K heads side by side, D head size, J items, W words of an
item, M rows of a tile (queries x heads), N positions of a block, S parts read at once (ALONE where no part of the
tile's own is left), R rows of a tile as parts hold them, L levels of shared runs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.blocks import absorb, absorb_dense, absorb_pairs
from sapwood.kernels.triton.jit import jit

ROWS, SPANS, RUNS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What the tiles of a launch are: rows of one token, longer spans, members of shared runs."""


FEW = tl.constexpr(2)
"""Parts of runs that a row joins to its own while that is in registers."""


@jit
def _join(
    best_R,
    total_R,
    acc_RD,
    valid_R,
    parts,
    lse,
    first,
    stride,
    count,
    D: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Absorb `count` parts of R rows, the first row of the first at place `first`, of the others `stride` places apart.

    Past the first level of caches: other processors wrote them while this one may have read what was there before.
    """
    d_D = tl.arange(0, D_PAD)
    for number in range(0, count, S):
        number_S = number + tl.arange(0, S)
        place_SR = first + number_S[:, None] * stride + tl.arange(0, R)[None, :]
        inside_SR = (number_S[:, None] < count) & valid_R[None, :]
        lse_SR = tl.load(lse + place_SR, mask=inside_SR, other=float("-inf"), cache_modifier=".cg")
        inside_SRD = inside_SR[:, :, None] & (d_D[None, None, :] < D)
        place_SRD = place_SR[:, :, None] * D + d_D[None, None, :]
        part_SRD = tl.load(parts + place_SRD, mask=inside_SRD, other=0.0, cache_modifier=".cg")
        better_R = tl.maximum(best_R, tl.max(lse_SR, axis=0))
        pivot_R = tl.where(better_R == float("-inf"), 0.0, better_R)
        share_SR, shrink_R = tl.exp2(lse_SR - pivot_R[None, :]), tl.exp2(best_R - pivot_R)
        total_R = total_R * shrink_R + tl.sum(share_SR, axis=0)
        acc_RD = acc_RD * shrink_R[:, None] + tl.sum(part_SRD * share_SR[:, :, None], axis=0)
        best_R = better_R
    return best_R, total_R, acc_RD


@jit
def _pick(x_L, l_L, level: tl.constexpr):
    return tl.sum(tl.where(l_L == level, x_L, 0), axis=0)


@jit
def _item(
    item,
    kv_head,
    heads_TXD,
    stride,
    kv_TX,
    keys,
    values,
    out_THD,
    parts_JKMD,
    lse_JKM,
    arrived_JK,
    run_parts_JKMD,
    run_lse_JKM,
    members_RL,
    places_M2,
    items_JW,
    tokens_of,
    tables_SP,
    table_stride,
    scale,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    KIND: tl.constexpr,
    DENSE: tl.constexpr,
    TMA: tl.constexpr,
    TILE: tl.constexpr,
    MEMBERS: tl.constexpr,
    LEVELS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    ALONE: tl.constexpr,
    D_PAD: tl.constexpr,
    PDL: tl.constexpr,
    PAIRS: tl.constexpr,
    CVT: tl.constexpr,
):
    """Attention of one item and one KV head."""
    record = items_JW + item * 8
    count = tl.load(record + 1)
    first, position, slot = tl.load(record), tl.load(record + 2), tl.load(record + 3)
    begin, end = tl.load(record + 4), tl.load(record + 5)

    m_M = tl.arange(0, M)
    query_M = m_M // G
    valid_M = query_M < count
    head_M = kv_head * G + m_M % G
    if KIND == RUNS:
        token_M = tl.load(tokens_of + first + query_M, mask=valid_M, other=0).to(tl.int64)
    else:
        token_M = (first + query_M).to(tl.int64)
    if LEVELS:
        # Where the row's parts of runs are; known before the launch that leaves them has ended.
        l_L = tl.arange(0, LEVELS)
        member_L = tl.load(members_RL + tl.load(record + 7) * LEVELS + l_L)
        place_L = tl.load(places_M2 + member_L * 2, mask=member_L >= 0, other=0)
        run_parts_L = tl.load(places_M2 + member_L * 2 + 1, mask=member_L >= 0, other=0)
    d_D = tl.arange(0, D_PAD)
    inside_MD = valid_M[:, None] & (d_D[None, :] < D)
    q_place = token_M[:, None] * stride + head_M[:, None] * D + d_D[None, :]
    q_MD = tl.load(heads_TXD + q_place, mask=inside_MD, other=0.0)

    best_M = tl.full([M], float("-inf"), tl.float32)
    total_M = tl.zeros([M], tl.float32)
    acc_MD = tl.zeros([M, D_PAD], tl.float32)
    position_M = position + query_M
    low = tl.maximum(position - WINDOW + 1, 0) if WINDOW else position * 0
    table_P = tables_SP + slot.to(tl.int64) * table_stride
    keys += kv_head * (PAGE * D)
    values += kv_head * (PAGE * D)
    if KIND != SPANS and PAIRS:
        if KIND == RUNS:
            clear = begin + tl.maximum(end - begin, 0) // N * N
            best_M, total_M, acc_MD = absorb_pairs(
                best_M, total_M, acc_MD, q_MD, begin, clear, low, table_P, keys, values, scale,
                K, D, PAGE, WINDOW, False, CVT, M, N, D_PAD,
            )  # fmt: skip
            begin = clear
        best_M, total_M, acc_MD = absorb_pairs(
            best_M, total_M, acc_MD, q_MD, begin, end, low, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, True, CVT, M, N, D_PAD,
        )  # fmt: skip
    elif KIND != SPANS:
        if KIND == RUNS:
            # Whole blocks of a run are seen by all its members. Of a row there are too few to be worth a second loop.
            clear = begin + tl.maximum(end - begin, 0) // N * N
            best_M, total_M, acc_MD = absorb(
                best_M, total_M, acc_MD, q_MD, position_M, begin, clear, low, table_P, keys, values, scale,
                K, D, PAGE, WINDOW, False, False, N, D_PAD,
            )  # fmt: skip
            begin = clear
        best_M, total_M, acc_MD = absorb(
            best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, True, False, N, D_PAD,
        )  # fmt: skip
    elif DENSE:
        start = tl.load(record + 7)
        best_M, total_M, acc_MD = absorb(
            best_M, total_M, acc_MD, q_MD, position_M, begin, tl.minimum(start, end), low, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, True, WINDOW > 0, N, D_PAD,
        )  # fmt: skip
        begin = tl.maximum(begin, start)
        k_TD = heads_TXD + (K * G + kv_head) * D
        column = (K * G + kv_head) * D
        if not WINDOW:
            # Whole blocks that every query of the tile sees need no mask.
            clear = begin + tl.maximum(tl.minimum(position + 1, end) - begin, 0) // N * N
            best_M, total_M, acc_MD = absorb_dense(
                best_M, total_M, acc_MD, q_MD, position_M, begin, clear, first - position, k_TD, k_TD + K * D, stride,
                kv_TX, column, scale, K, D, WINDOW, False, TMA, N, D_PAD,
            )  # fmt: skip
            begin = clear
        best_M, total_M, acc_MD = absorb_dense(
            best_M, total_M, acc_MD, q_MD, position_M, begin, end, first - position, k_TD, k_TD + K * D, stride,
            kv_TX, column, scale, K, D, WINDOW, True, TMA, N, D_PAD,
        )  # fmt: skip
    else:
        if not WINDOW:
            clear = begin + tl.maximum(tl.minimum(position + 1, end) - begin, 0) // N * N
            best_M, total_M, acc_MD = absorb(
                best_M, total_M, acc_MD, q_MD, position_M, begin, clear, low, table_P, keys, values, scale,
                K, D, PAGE, WINDOW, False, True, N, D_PAD,
            )  # fmt: skip
            begin = clear
        best_M, total_M, acc_MD = absorb(
            best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, True, True, N, D_PAD,
        )  # fmt: skip

    if PDL and LEVELS > 0:
        pdl.catch_up()
    apart = tl.load(record + 6)
    if LEVELS:  # noqa: SIM102
        # The item is all of the row that no run holds. A few parts of runs join it here, and none of its own is left;
        # many are read faster all at once, below.
        if (apart == 1) & (tl.sum(run_parts_L, axis=0) <= FEW):
            for level in tl.static_range(LEVELS):
                place, run_parts = _pick(place_L, l_L, level), _pick(run_parts_L, l_L, level)
                run = ((place // MEMBERS).to(tl.int64) * K + kv_head) * (MEMBERS * G) + place % MEMBERS * G
                best_M, total_M, acc_MD = _join(
                    best_M, total_M, acc_MD, valid_M, run_parts_JKMD, run_lse_JKM,
                    run, K * MEMBERS * G, run_parts, D, ALONE, M, D_PAD,
                )  # fmt: skip
            apart = 0
    # A part may hold nothing that some query sees; its weight in the merge is then 0.
    acc_MD = acc_MD / tl.where(total_M > 0.0, total_M, 1.0)[:, None]
    if apart == 0:
        place_M = token_M * (K * G) + head_M
        tl.store(out_THD + place_M[:, None] * D + d_D[None, :], acc_MD.to(out_THD.dtype.element_ty), mask=inside_MD)
    elif parts_JKMD is not None:
        place_M = (item.to(tl.int64) * K + kv_head) * (TILE * G) + m_M
        tl.store(parts_JKMD + place_M[:, None] * D + d_D[None, :], acc_MD, mask=inside_MD)
        tl.store(lse_JKM + place_M, best_M + tl.log2(total_M), mask=valid_M)
        if arrived_JK is not None:
            tl.debug_barrier()  # the whole part is there before it is counted
            lead = item + tl.minimum(apart, 0)
            parts = tl.load(items_JW + lead * 8 + 6)
            arrived = arrived_JK + lead * K + kv_head
            if tl.atomic_add(arrived, 1, sem="acq_rel") == parts - 1:
                tl.store(arrived, 0)  # for the next layer
                r_R = tl.arange(0, R)
                valid_R = r_R // G < count
                best_R, total_R, acc_RD = _join(
                    tl.full([R], float("-inf"), tl.float32), tl.zeros([R], tl.float32),
                    tl.zeros([R, D_PAD], tl.float32), valid_R, parts_JKMD, lse_JKM,
                    (lead.to(tl.int64) * K + kv_head) * (TILE * G), K * TILE * G, parts, D, S, R, D_PAD,
                )  # fmt: skip
                for level in tl.static_range(LEVELS):
                    place, run_parts = _pick(place_L, l_L, level), _pick(run_parts_L, l_L, level)
                    run = ((place // MEMBERS).to(tl.int64) * K + kv_head) * (MEMBERS * G) + place % MEMBERS * G
                    best_R, total_R, acc_RD = _join(
                        best_R, total_R, acc_RD, valid_R, run_parts_JKMD, run_lse_JKM,
                        run, K * MEMBERS * G, run_parts, D, S, R, D_PAD,
                    )  # fmt: skip
                place_R = (first + r_R // G).to(tl.int64) * (K * G) + kv_head * G + r_R % G
                whole_RD = (acc_RD / tl.where(total_R > 0.0, total_R, 1.0)[:, None]).to(out_THD.dtype.element_ty)
                there_RD = valid_R[:, None] & (d_D[None, :] < D)
                tl.store(out_THD + place_R[:, None] * D + d_D[None, :], whole_RD, mask=there_RD)


@jit(do_not_specialize_on_alignment=["tokens_of", "used_1", "members_RL", "places_M2"])
def attend(
    heads_TXD,
    stride,
    kv_TX,
    keys,
    values,
    out_THD,
    parts_JKMD,
    lse_JKM,
    arrived_JK,
    run_parts_JKMD,
    run_lse_JKM,
    members_RL,
    places_M2,
    items_JW,
    tokens_of,
    used_1,
    tables_SP,
    table_stride,
    scale,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    KIND: tl.constexpr,
    DENSE: tl.constexpr,
    TMA: tl.constexpr,
    TILE: tl.constexpr,
    MEMBERS: tl.constexpr,
    LEVELS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    ALONE: tl.constexpr,
    D_PAD: tl.constexpr,
    PDL: tl.constexpr,
    PAIRS: tl.constexpr,
    CVT: tl.constexpr,
):
    """Attention of all items. Grid (K, items), or for RUNS, of which there are few, as many programs as the device holds:
    they share the first `used_1` items.

    A tile is up to TILE queries, or members (RUNS), of which `tokens_of` names the tokens. DENSE (SPANS): keys and
    values of a span's own tokens are read from `heads_TXD`, and only those before it from pages. An item that is not
    all of its tile leaves its weighted mean and the log2 of its sum of exponentials at [item, KV head, row of the tile].
    `arrived_JK` (0 before and after) counts the parts of a tile at its first item; without it nobody joins them. With
    LEVELS, tiles are rows of one token, and the parts of the runs that a row is a member of join as well; the launch over
    the runs is the one before, and both are at work at the same time. R is TILE * G or more, a power of two.
    """
    if KIND == RUNS:
        if PDL:
            pdl.lead()
        zero = tl.program_id(1)  # in the interpreter, what is added to it becomes a tensor
        for number in range(tl.program_id(0), tl.load(used_1) * K, tl.num_programs(0)):
            _item(
                zero + number // K, zero + number % K, heads_TXD, stride, kv_TX, keys, values, out_THD, parts_JKMD, lse_JKM, arrived_JK,
                run_parts_JKMD, run_lse_JKM, members_RL, places_M2, items_JW, tokens_of, tables_SP, table_stride, scale,
                K, G, D, PAGE, WINDOW, KIND, DENSE, TMA, TILE, MEMBERS, LEVELS, M, N, S, R, ALONE, D_PAD, PDL, PAIRS, CVT,
            )  # fmt: skip
    else:
        if PDL:
            if LEVELS:
                pdl.follow()
            else:
                pdl.join()
        if tl.load(items_JW + tl.program_id(1) * 8 + 1) > 0:
            _item(
                tl.program_id(1), tl.program_id(0), heads_TXD, stride, kv_TX, keys, values, out_THD, parts_JKMD, lse_JKM,
                arrived_JK, run_parts_JKMD, run_lse_JKM, members_RL, places_M2, items_JW, tokens_of, tables_SP,
                table_stride, scale,
                K, G, D, PAGE, WINDOW, KIND, DENSE, TMA, TILE, MEMBERS, LEVELS, M, N, S, R, ALONE, D_PAD, PDL, PAIRS, CVT,
            )  # fmt: skip
        elif PDL and LEVELS > 0:
            pdl.catch_up()
