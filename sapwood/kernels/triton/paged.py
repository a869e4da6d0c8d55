"""Attention over pages.

Keys and values of a layer lie as [page, KV head, cell of the page, D]: a head's share of a page is one run of memory. Where they
have scales, those are float32 [page, KV head, cell of the page]; where they were divided by factors of their heads, `factors_2K` has those of keys, which
become part of the scale of scores, then those of values, by which outputs are multiplied.

There is a kernel for each kind of tile: rows that yield (of one token, or of one with drafts behind it), spans, and members
of runs of positions that several rows share. The unit of all is an item (`sapwood.kernels.triton.deal`): a tile of queries, with the G query heads of one KV
head folded in, over a part of the positions, so that keys and values are read once for all of them. Where a tile has
several parts, the program that leaves the last of them joins all, and the parts of the runs that a row shares with them:
a launch of its own would take longer than that. Whichever program it is, it reads the parts in the same order, so that
results do not depend on it. Grids depend only on sizes that a host knows without the lengths; programs that find nothing
to do leave at once.

What a tile makes of the positions is in `sapwood.kernels.triton.blocks`, and what becomes of it in
`sapwood.kernels.triton.parts`.

Suffix legend: T tokens, H query heads, K KV heads, X = H + 2K heads side by side, D head size, J items, W words of an
item, M rows of a tile (queries x heads), N positions of a block, S parts read at once (ALONE where no part of the
tile's own is left), R rows of a tile as parts hold them, L levels of shared runs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.blocks import absorb, absorb_dense, absorb_pairs, oldest
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.parts import arrive, beside_sinks, join, join_runs, leave, mean, nothing, runs_of, write

FEW = tl.constexpr(2)
"""Parts of runs that a tile joins to its own while that is in registers."""


@jit
def _queries(
    heads_TXD, start_M1, valid_M, kv_head, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, D_PAD: tl.constexpr
):
    """The query head of each row of a tile, and its queries [M, D_PAD]; `start_M1` is where its token begins, or that of all."""
    d_D = tl.arange(0, D_PAD)
    head_M = kv_head * G + tl.arange(0, M) % G
    place_MD = start_M1 + head_M[:, None] * D + d_D[None, :]
    return head_M, tl.load(heads_TXD + place_MD, mask=valid_M[:, None] & (d_D[None, :] < D), other=0.0)


@jit
def _of_keys(scale, factors_2K, kv_head):
    """The scale of scores, with what a head's keys were divided by."""
    if factors_2K is not None:
        scale *= tl.load(factors_2K + kv_head)
    return scale


@jit
def _of_values(mean_MD, factors_2K, kv_head, K: tl.constexpr):
    """What is put out, with what a head's values were divided by."""
    if factors_2K is not None:
        mean_MD *= tl.load(factors_2K + K + kv_head)
    return mean_MD


@jit(do_not_specialize_on_alignment=["members_QL", "places_M2", "factors_2K"])
def attend_rows(
    heads_TXD,
    stride,
    keys,
    values,
    key_scales,
    value_scales,
    factors_2K,
    out_THD,
    parts_JKMD,
    lse_JKM,
    arrived_JK,
    run_parts_JKMD,
    run_lse_JKM,
    members_QL,
    places_M2,
    items_JW,
    tables_SP,
    table_stride,
    scale,
    slopes_H,
    sinks_H,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    MEMBERS: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
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
    """Attention of rows that yield, in tiles of up to TILE queries. Grid (K, items).

    With LEVELS, the parts of the runs that a query is a member of join its own; they lie in tiles of MEMBERS, the launch over
    the runs is the one before, and both are at work at the same time. R is TILE * G or more, a power of two.
    """
    if PDL:
        if LEVELS:
            pdl.follow()
        else:
            pdl.join()
    kv_head, item = tl.program_id(0), tl.program_id(1)
    record = items_JW + item * 8
    count = tl.load(record + 1)
    if count > 0:
        first, position, slot = tl.load(record), tl.load(record + 2), tl.load(record + 3)
        begin, end = tl.load(record + 4), tl.load(record + 5)
        m_M = tl.arange(0, M)
        query_M = m_M // G
        if TILE == 1:  # what is known of one query is a number
            valid_M, token_M = m_M < G, first.to(tl.int64)
            start_M1 = token_M * stride
        else:
            valid_M, token_M = query_M < count, (first + query_M).to(tl.int64)
            start_M1 = token_M[:, None] * stride
        if LEVELS:
            # Where the parts of runs are; known before the launch that leaves them has ended.
            origin = tl.load(record + 7)
            if TILE == 1:
                place_ML, run_parts_ML = runs_of(members_QL, places_M2, origin, LEVELS)
                few = tl.sum(run_parts_ML, axis=0) <= FEW
            else:
                asked_M1 = origin + tl.minimum(query_M, count - 1)[:, None]
                place_ML, run_parts_ML = runs_of(members_QL, places_M2, asked_M1, LEVELS)
                few = tl.max(tl.sum(run_parts_ML, axis=1), axis=0) <= FEW
        head_M, q_MD = _queries(heads_TXD, start_M1, valid_M, kv_head, G, D, M, D_PAD)
        slope_M = None
        if slopes_H is not None:
            slope_M = tl.load(slopes_H + head_M)

        scale = _of_keys(scale, factors_2K, kv_head)
        best_M, total_M, acc_MD = nothing(M, D_PAD)
        position_M = position + query_M
        low = oldest(position, WINDOW)
        table_P = tables_SP + slot.to(tl.int64) * table_stride
        keys += kv_head * (PAGE * D)
        values += kv_head * (PAGE * D)
        if key_scales is not None:
            key_scales += kv_head * PAGE
            value_scales += kv_head * PAGE
        if PAIRS:
            best_M, total_M, acc_MD = absorb_pairs(
                best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, table_P, keys, values,
                key_scales, value_scales, scale, slope_M,
                K, D, PAGE, WINDOW, CAP, True, TILE > 1, CVT, M, N, D_PAD,
            )  # fmt: skip
        else:
            best_M, total_M, acc_MD = absorb(
                best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, table_P, keys, values,
                key_scales, value_scales, scale, slope_M,
                K, D, PAGE, WINDOW, CAP, True, TILE > 1, N, D_PAD,
            )  # fmt: skip

        if PDL and LEVELS > 0:
            pdl.catch_up()
        apart = tl.load(record + 6)
        if LEVELS:  # noqa: SIM102
            # The item is all of the tile that no run holds. A few parts of runs join it here, and none of its own is
            # left; many are read faster all at once, below.
            if (apart == 1) & few:
                best_M, total_M, acc_MD = join_runs(
                    best_M, total_M, acc_MD, valid_M, run_parts_JKMD, run_lse_JKM, place_ML, run_parts_ML, m_M % G,
                    kv_head, K, G, D, MEMBERS, LEVELS, TILE == 1, ALONE, D_PAD,
                )  # fmt: skip
                apart = 0
        mean_MD = mean(total_M, acc_MD)
        if apart == 0:
            mean_MD = beside_sinks(mean_MD, best_M, total_M, sinks_H, head_M)
            mean_MD = _of_values(mean_MD, factors_2K, kv_head, K)
            write(out_THD, token_M * (K * G) + head_M, valid_M, mean_MD, D, D_PAD)
        else:
            place_M = (item.to(tl.int64) * K + kv_head) * (TILE * G) + m_M
            leave(parts_JKMD, lse_JKM, place_M, valid_M, best_M, total_M, mean_MD, D, D_PAD)
            last, lead, parts = arrive(arrived_JK, items_JW, item, kv_head, apart, K)
            if last:
                r_R = tl.arange(0, R)
                query_R, head_R = r_R // G, r_R % G
                if TILE == 1:
                    valid_R, token_R = r_R < G, first.to(tl.int64)
                else:
                    valid_R, token_R = query_R < count, (first + query_R).to(tl.int64)
                best_R, total_R, acc_RD = nothing(R, D_PAD)
                best_R, total_R, acc_RD = join(
                    best_R, total_R, acc_RD, valid_R, parts_JKMD, lse_JKM, (lead * K + kv_head) * (TILE * G), r_R,
                    K * TILE * G, parts, parts, D, S, D_PAD,
                )  # fmt: skip
                if LEVELS:
                    if TILE == 1:
                        place_RL, run_parts_RL = place_ML, run_parts_ML
                    else:
                        asked_R1 = origin + tl.minimum(query_R, count - 1)[:, None]
                        place_RL, run_parts_RL = runs_of(members_QL, places_M2, asked_R1, LEVELS)
                    best_R, total_R, acc_RD = join_runs(
                        best_R, total_R, acc_RD, valid_R, run_parts_JKMD, run_lse_JKM, place_RL, run_parts_RL, head_R,
                        kv_head, K, G, D, MEMBERS, LEVELS, TILE == 1, S, D_PAD,
                    )  # fmt: skip
                place_R = token_R * (K * G) + kv_head * G + head_R
                mean_RD = beside_sinks(mean(total_R, acc_RD), best_R, total_R, sinks_H, kv_head * G + head_R)
                mean_RD = _of_values(mean_RD, factors_2K, kv_head, K)
                write(out_THD, place_R, valid_R, mean_RD, D, D_PAD)
    elif PDL and LEVELS > 0:
        pdl.catch_up()


@jit(do_not_specialize_on_alignment=["factors_2K"])
def attend_spans(
    heads_TXD,
    stride,
    kv_TX,
    keys,
    values,
    key_scales,
    value_scales,
    factors_2K,
    out_THD,
    parts_JKMD,
    lse_JKM,
    arrived_JK,
    items_JW,
    tables_SP,
    table_stride,
    scale,
    slopes_H,
    sinks_H,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    DENSE: tl.constexpr,
    TMA: tl.constexpr,
    TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    D_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attention of spans, in tiles of up to TILE queries. Grid (K, items).

    DENSE: keys and values of a span's own tokens are read from `heads_TXD`, and only those before it from pages. Without
    `parts_JKMD` every item is all of its tile. R is TILE * G or more, a power of two.
    """
    if PDL:
        pdl.join()
    kv_head, item = tl.program_id(0), tl.program_id(1)
    record = items_JW + item * 8
    count = tl.load(record + 1)
    if count > 0:
        first, position, slot = tl.load(record), tl.load(record + 2), tl.load(record + 3)
        begin, end = tl.load(record + 4), tl.load(record + 5)
        m_M = tl.arange(0, M)
        query_M = m_M // G
        valid_M = query_M < count
        token_M = (first + query_M).to(tl.int64)
        head_M, q_MD = _queries(heads_TXD, token_M[:, None] * stride, valid_M, kv_head, G, D, M, D_PAD)
        slope_M = None
        if slopes_H is not None:
            slope_M = tl.load(slopes_H + head_M)

        scale = _of_keys(scale, factors_2K, kv_head)
        best_M, total_M, acc_MD = nothing(M, D_PAD)
        position_M = position + query_M
        low = oldest(position, WINDOW)
        table_P = tables_SP + slot.to(tl.int64) * table_stride
        keys += kv_head * (PAGE * D)
        values += kv_head * (PAGE * D)
        if key_scales is not None:
            key_scales += kv_head * PAGE
            value_scales += kv_head * PAGE
        if DENSE:
            start = tl.load(record + 7)
            best_M, total_M, acc_MD = absorb(
                best_M, total_M, acc_MD, q_MD, position_M, begin, tl.minimum(start, end), low, table_P, keys, values,
                key_scales, value_scales, scale, slope_M, K, D, PAGE, WINDOW, CAP, True, WINDOW != 0, N, D_PAD,
            )  # fmt: skip
            begin = tl.maximum(begin, start)
            k_TD = heads_TXD + (K * G + kv_head) * D
            column = (K * G + kv_head) * D
            if not WINDOW:
                # Whole blocks that every query of the tile sees need no mask.
                clear = begin + tl.maximum(tl.minimum(position + 1, end) - begin, 0) // N * N
                best_M, total_M, acc_MD = absorb_dense(
                    best_M, total_M, acc_MD, q_MD, position_M, begin, clear, first - position, k_TD, k_TD + K * D,
                    stride, kv_TX, column, scale, slope_M, K, D, WINDOW, CAP, False, TMA, N, D_PAD,
                )  # fmt: skip
                begin = clear
            best_M, total_M, acc_MD = absorb_dense(
                best_M, total_M, acc_MD, q_MD, position_M, begin, end, first - position, k_TD, k_TD + K * D,
                stride, kv_TX, column, scale, slope_M, K, D, WINDOW, CAP, True, TMA, N, D_PAD,
            )  # fmt: skip
        else:
            if not WINDOW:
                clear = begin + tl.maximum(tl.minimum(position + 1, end) - begin, 0) // N * N
                best_M, total_M, acc_MD = absorb(
                    best_M, total_M, acc_MD, q_MD, position_M, begin, clear, low, table_P, keys, values,
                key_scales, value_scales, scale, slope_M,
                    K, D, PAGE, WINDOW, CAP, False, True, N, D_PAD,
                )  # fmt: skip
                begin = clear
            best_M, total_M, acc_MD = absorb(
                best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, table_P, keys, values,
                key_scales, value_scales, scale, slope_M,
                K, D, PAGE, WINDOW, CAP, True, True, N, D_PAD,
            )  # fmt: skip

        mean_MD = mean(total_M, acc_MD)
        apart = tl.load(record + 6)
        if apart == 0:
            mean_MD = beside_sinks(mean_MD, best_M, total_M, sinks_H, head_M)
            mean_MD = _of_values(mean_MD, factors_2K, kv_head, K)
            write(out_THD, token_M * (K * G) + head_M, valid_M, mean_MD, D, D_PAD)
        elif parts_JKMD is not None:
            place_M = (item.to(tl.int64) * K + kv_head) * (TILE * G) + m_M
            leave(parts_JKMD, lse_JKM, place_M, valid_M, best_M, total_M, mean_MD, D, D_PAD)
            last, lead, parts = arrive(arrived_JK, items_JW, item, kv_head, apart, K)
            if last:
                r_R = tl.arange(0, R)
                valid_R = r_R // G < count
                best_R, total_R, acc_RD = nothing(R, D_PAD)
                best_R, total_R, acc_RD = join(
                    best_R, total_R, acc_RD, valid_R, parts_JKMD, lse_JKM, (lead * K + kv_head) * (TILE * G), r_R,
                    K * TILE * G, parts, parts, D, S, D_PAD,
                )  # fmt: skip
                place_R = (first + r_R // G).to(tl.int64) * (K * G) + kv_head * G + r_R % G
                head_R = kv_head * G + r_R % G
                mean_RD = beside_sinks(mean(total_R, acc_RD), best_R, total_R, sinks_H, head_R)
                mean_RD = _of_values(mean_RD, factors_2K, kv_head, K)
                write(out_THD, place_R, valid_R, mean_RD, D, D_PAD)


@jit(do_not_specialize_on_alignment=["tokens_of", "used_1", "factors_2K"])
def attend_runs(
    heads_TXD,
    stride,
    keys,
    values,
    key_scales,
    value_scales,
    factors_2K,
    parts_JKMD,
    lse_JKM,
    items_JW,
    tokens_of,
    used_1,
    tables_SP,
    table_stride,
    scale,
    slopes_H,
    positions_T,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    CAP: tl.constexpr,
    TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
    PDL: tl.constexpr,
    PAIRS: tl.constexpr,
    CVT: tl.constexpr,
):
    """Parts of runs, in tiles of up to TILE members, of which `tokens_of` names the tokens. Grid (programs,): there are few
    tiles, so as many programs as the device holds share the first `used_1` items. A run's positions are seen by all its
    members; nobody here joins the parts.
    """
    if PDL:
        pdl.lead()
    zero = tl.program_id(1)  # in the interpreter, what is added to it becomes a tensor
    for number in range(tl.program_id(0), tl.load(used_1) * K, tl.num_programs(0)):
        item, kv_head = zero + number // K, zero + number % K
        record = items_JW + item * 8
        count = tl.load(record + 1)
        first, slot = tl.load(record), tl.load(record + 3)
        begin, end = tl.load(record + 4), tl.load(record + 5)
        m_M = tl.arange(0, M)
        query_M = m_M // G
        valid_M = query_M < count
        token_M = tl.load(tokens_of + first + query_M, mask=valid_M, other=0).to(tl.int64)
        head_M, q_MD = _queries(heads_TXD, token_M[:, None] * stride, valid_M, kv_head, G, D, M, D_PAD)
        slope_M, position_M = None, query_M
        if slopes_H is not None:
            slope_M = tl.load(slopes_H + head_M)
            position_M = tl.load(positions_T + token_M, mask=valid_M, other=0)

        best_M, total_M, acc_MD = nothing(M, D_PAD)
        table_P = tables_SP + slot.to(tl.int64) * table_stride
        k_head, v_head = keys + kv_head * (PAGE * D), values + kv_head * (PAGE * D)
        k_scales, v_scales = None, None
        if key_scales is not None:
            k_scales, v_scales = key_scales + kv_head * PAGE, value_scales + kv_head * PAGE
        own_scale = _of_keys(scale, factors_2K, kv_head)
        low = begin * 0
        # Whole blocks need no mask. Of a row there are too few to be worth a second loop.
        clear = begin + tl.maximum(end - begin, 0) // N * N
        if PAIRS:
            best_M, total_M, acc_MD = absorb_pairs(
                best_M, total_M, acc_MD, q_MD, position_M, begin, clear, low, table_P, k_head, v_head,
                k_scales, v_scales, own_scale, slope_M,
                K, D, PAGE, 0, CAP, False, False, CVT, M, N, D_PAD,
            )  # fmt: skip
            best_M, total_M, acc_MD = absorb_pairs(
                best_M, total_M, acc_MD, q_MD, position_M, clear, end, low, table_P, k_head, v_head,
                k_scales, v_scales, own_scale, slope_M,
                K, D, PAGE, 0, CAP, True, False, CVT, M, N, D_PAD,
            )  # fmt: skip
        else:
            best_M, total_M, acc_MD = absorb(
                best_M, total_M, acc_MD, q_MD, position_M, begin, clear, low, table_P, k_head, v_head,
                k_scales, v_scales, own_scale, slope_M,
                K, D, PAGE, 0, CAP, False, False, N, D_PAD,
            )  # fmt: skip
            best_M, total_M, acc_MD = absorb(
                best_M, total_M, acc_MD, q_MD, position_M, clear, end, low, table_P, k_head, v_head,
                k_scales, v_scales, own_scale, slope_M,
                K, D, PAGE, 0, CAP, True, False, N, D_PAD,
            )  # fmt: skip
        place_M = (item.to(tl.int64) * K + kv_head) * (TILE * G) + m_M
        leave(parts_JKMD, lse_JKM, place_M, valid_M, best_M, total_M, mean(total_M, acc_MD), D, D_PAD)
