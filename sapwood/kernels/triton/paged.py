"""Attention over pages.

Keys and values of a layer lie as [page, KV head, cell of the page, D]: a head's share of a page is one run of memory.

`attend` is the only attention kernel. Its unit is an item (`sapwood.kernels.triton.deal`): a tile of queries, with the G
query heads of one KV head folded in, over a part of the positions, so that keys and values are read once for all of
them. It is launched at most three times: over rows of one token, over longer spans, and over runs of positions that
several rows share. `merge` joins the parts of a tile, and of the runs that its row shares. Grids depend only on sizes
that a host knows without the lengths; programs that find nothing to do leave at once.

Scores are kept in base 2: `scale`, which is positive, comes multiplied by log2(e).

Suffix legend: T tokens, H query heads, K KV heads, X = H + 2K heads side by side, D head size, J items, W words of an
item, M rows of a tile (queries x heads), N positions of a block, S parts read at once, L levels of shared runs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sapwood.kernels.triton import pdl

ROWS, SPANS, RUNS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What the tiles of a launch are: rows of one token, longer spans, members of shared runs."""


@triton.jit
def _page(table_P, position, end, PAGE: tl.constexpr, N: tl.constexpr):
    """The page of each position of a block; one for all of them where a block lies in one page. Page 0 beyond `end`.

    Loaded a block ahead of its use, so that keys and values wait for no other load of their own turn of the loop, and
    the compiler can have several blocks of them on their way.
    """
    if N > PAGE:
        position += tl.arange(0, N)
    return tl.load(table_P + position // PAGE, mask=position < end, other=0)


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
    table_P,
    keys,
    values,
    scale,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Online softmax over positions [begin, end) in pages, `begin` a multiple of the smaller of N and PAGE.

    `keys` and `values` point at the KV head in page 0. BOUNDED: the last block may reach beyond `end`, and positions
    before `low` are not seen. What no query sees is not read: it may hold anything, and NaN times a weight of 0 is NaN.
    """
    d_D = tl.arange(0, D_PAD)
    page = _page(table_P, begin, end, PAGE, N)
    for position in tl.range(begin, end, N):
        position_N = position + tl.arange(0, N)
        inside_N = position_N < end
        if WINDOW:
            inside_N = inside_N & (position_N >= low)
        cell_N = page.to(tl.int64) * (K * PAGE * D) + (position_N % PAGE) * D
        page = _page(table_P, position + N, end, PAGE, N)
        k_place, v_place = keys + cell_N[:, None] + d_D[None, :], values + cell_N[:, None] + d_D[None, :]
        if BOUNDED or D != D_PAD:
            inside_ND = inside_N[:, None] & (d_D[None, :] < D)
            k_ND = tl.load(k_place, mask=inside_ND, other=0.0).to(q_MD.dtype)
            v_ND = tl.load(v_place, mask=inside_ND, other=0.0).to(q_MD.dtype)
        else:
            k_ND = tl.load(k_place).to(q_MD.dtype)
            v_ND = tl.load(v_place).to(q_MD.dtype)
        best_M, total_M, acc_MD = _weigh(
            best_M, total_M, acc_MD, q_MD, k_ND, v_ND, position_M, position_N, inside_N, scale, WINDOW, BOUNDED, CAUSAL
        )
    return best_M, total_M, acc_MD


@triton.jit
def _absorb_dense(
    best_M,
    total_M,
    acc_MD,
    q_MD,
    position_M,
    begin,
    end,
    shift,
    k_TD,
    v_TD,
    stride,
    kv_TX,
    column,
    scale,
    K: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    BOUNDED: tl.constexpr,
    TMA: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """The same over positions whose keys and values lie token by token: position p is token p + `shift`.

    `k_TD` and `v_TD` point at the KV head of token 0; with TMA the descriptor `kv_TX` is read at `column` and K heads on.
    """
    d_D = tl.arange(0, D_PAD)
    for position in tl.range(begin, end, N):
        position_N = position + tl.arange(0, N)
        inside_N = position_N < end
        if TMA and not BOUNDED:  # rows beyond the end are another's, which a descriptor would read
            k_ND = kv_TX.load([position + shift, column])
            v_ND = kv_TX.load([position + shift, column + K * D])
        else:
            place = (position_N + shift).to(tl.int64)[:, None] * stride + d_D[None, :]
            if BOUNDED or D != D_PAD:
                inside_ND = inside_N[:, None] & (d_D[None, :] < D)
                k_ND = tl.load(k_TD + place, mask=inside_ND, other=0.0)
                v_ND = tl.load(v_TD + place, mask=inside_ND, other=0.0)
            else:
                k_ND = tl.load(k_TD + place)
                v_ND = tl.load(v_TD + place)
        best_M, total_M, acc_MD = _weigh(
            best_M, total_M, acc_MD, q_MD, k_ND, v_ND, position_M, position_N, inside_N, scale, WINDOW, BOUNDED, True
        )
    return best_M, total_M, acc_MD


@triton.jit
def _weigh(
    best_M,
    total_M,
    acc_MD,
    q_MD,
    k_ND,
    v_ND,
    position_M,
    position_N,
    inside_N,
    scale,
    WINDOW: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One block's step of the online softmax. Without BOUNDED every query sees the whole block."""
    score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
    if BOUNDED:
        if CAUSAL:
            seen_MN = inside_N[None, :] & (position_N[None, :] <= position_M[:, None])
            if WINDOW:
                seen_MN = seen_MN & (position_N[None, :] > position_M[:, None] - WINDOW)
            score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        else:
            score_MN = tl.where(inside_N[None, :], score_MN, float("-inf"))
    better_M = tl.maximum(best_M, tl.max(score_MN, axis=1) * scale)
    pivot_M = better_M
    if BOUNDED:  # a query that has seen nothing yet has best -inf, and -inf - -inf would be NaN
        pivot_M = tl.where(better_M == float("-inf"), 0.0, better_M)
    weight_MN = tl.exp2(score_MN * scale - pivot_M[:, None])
    shrink_M = tl.exp2(best_M - pivot_M)
    total_M = total_M * shrink_M + tl.sum(weight_MN, axis=1)
    acc_MD = acc_MD * shrink_M[:, None]
    acc_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision="ieee")
    return better_M, total_M, acc_MD


@triton.jit(do_not_specialize_on_alignment=["tokens_of"])
def attend(
    heads_TXD,
    stride,
    kv_TX,
    keys,
    values,
    out_THD,
    parts_JKMD,
    lse_JKM,
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
    M: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attention of one item and one KV head. Grid (items, K).

    A tile is up to TILE queries, or members (RUNS), of which `tokens_of` names the tokens. DENSE (SPANS): keys and
    values of a span's own tokens are read from `heads_TXD`, and only those before it from pages. An item that is not
    all of its tile leaves its weighted mean and the log2 of its sum of exponentials at [item, KV head, row of the tile].
    """
    item, kv_head = tl.program_id(0), tl.program_id(1)
    if PDL:
        pdl.join()
    record = items_JW + item * 8
    count = tl.load(record + 1)
    if count == 0:
        return
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
    if KIND != SPANS:
        best_M, total_M, acc_MD = _absorb(
            best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, True, False, N, D_PAD,
        )  # fmt: skip
    elif DENSE:
        start = tl.load(record + 7)
        best_M, total_M, acc_MD = _absorb(
            best_M, total_M, acc_MD, q_MD, position_M, begin, tl.minimum(start, end), low, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, True, WINDOW > 0, N, D_PAD,
        )  # fmt: skip
        begin = tl.maximum(begin, start)
        k_TD = heads_TXD + (K * G + kv_head) * D
        column = (K * G + kv_head) * D
        if not WINDOW:
            # Whole blocks that every query of the tile sees need no mask.
            clear = begin + tl.maximum(tl.minimum(position + 1, end) - begin, 0) // N * N
            best_M, total_M, acc_MD = _absorb_dense(
                best_M, total_M, acc_MD, q_MD, position_M, begin, clear, first - position, k_TD, k_TD + K * D, stride,
                kv_TX, column, scale, K, D, WINDOW, False, TMA, N, D_PAD,
            )  # fmt: skip
            begin = clear
        best_M, total_M, acc_MD = _absorb_dense(
            best_M, total_M, acc_MD, q_MD, position_M, begin, end, first - position, k_TD, k_TD + K * D, stride,
            kv_TX, column, scale, K, D, WINDOW, True, TMA, N, D_PAD,
        )  # fmt: skip
    else:
        if not WINDOW:
            clear = begin + tl.maximum(tl.minimum(position + 1, end) - begin, 0) // N * N
            best_M, total_M, acc_MD = _absorb(
                best_M, total_M, acc_MD, q_MD, position_M, begin, clear, low, table_P, keys, values, scale,
                K, D, PAGE, WINDOW, False, True, N, D_PAD,
            )  # fmt: skip
            begin = clear
        best_M, total_M, acc_MD = _absorb(
            best_M, total_M, acc_MD, q_MD, position_M, begin, end, low, table_P, keys, values, scale,
            K, D, PAGE, WINDOW, True, True, N, D_PAD,
        )  # fmt: skip

    # A part may hold nothing that some query sees; its weight in the merge is then 0.
    acc_MD = acc_MD / tl.where(total_M > 0.0, total_M, 1.0)[:, None]
    apart = item * 0
    if parts_JKMD is not None:
        apart = tl.load(record + 6)
        if apart != 0:
            place_M = (item.to(tl.int64) * K + kv_head) * (TILE * G) + m_M
            tl.store(parts_JKMD + place_M[:, None] * D + d_D[None, :], acc_MD, mask=inside_MD)
            tl.store(lse_JKM + place_M, best_M + tl.log2(total_M), mask=valid_M)
    if apart == 0:
        place_M = token_M * (K * G) + head_M
        tl.store(out_THD + place_M[:, None] * D + d_D[None, :], acc_MD.to(out_THD.dtype.element_ty), mask=inside_MD)


@triton.jit
def _join(best, total, acc_D, parts, lse, first, stride, count, D: tl.constexpr, S: tl.constexpr, D_PAD: tl.constexpr):
    """Absorb `count` parts, the first at place `first` and the others `stride` places apart."""
    d_D = tl.arange(0, D_PAD)
    for number in range(0, count, S):
        number_S = number + tl.arange(0, S)
        place_S = first + number_S * stride
        lse_S = tl.load(lse + place_S, mask=number_S < count, other=float("-inf"))
        inside_SD = (number_S[:, None] < count) & (d_D[None, :] < D)
        part_SD = tl.load(parts + place_S[:, None] * D + d_D[None, :], mask=inside_SD, other=0.0)
        better = tl.maximum(best, tl.max(lse_S, axis=0))
        pivot = tl.where(better == float("-inf"), 0.0, better)
        share_S, shrink = tl.exp2(lse_S - pivot), tl.exp2(best - pivot)
        total = total * shrink + tl.sum(share_S, axis=0)
        acc_D = acc_D * shrink + tl.sum(part_SD * share_S[:, None], axis=0)
        best = better
    return best, total, acc_D


@triton.jit(do_not_specialize_on_alignment=["members_RL", "places_M2"])
def merge(
    parts_JKMD,
    lse_JKM,
    run_parts_JKMD,
    run_lse_JKM,
    out_THD,
    items_JW,
    members_RL,
    places_M2,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    MEMBERS: tl.constexpr,
    LEVELS: tl.constexpr,
    HEADS: tl.constexpr,
    S: tl.constexpr,
    D_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Join the parts of one tile, HEADS heads of it, by their shares of the softmax's sum. Grid (items, H / HEADS).

    With LEVELS, tiles are rows of one token, and the parts of the runs that the row is a member of join as well.
    """
    item = tl.program_id(0)
    if PDL:
        pdl.join()
    record = items_JW + item * 8
    count, parts = tl.load(record + 1), tl.load(record + 6)
    if (count == 0) | (parts <= 0):
        return
    token, row = tl.load(record).to(tl.int64), tl.load(record + 7)
    d_D = tl.arange(0, D_PAD)
    for query in range(0, count):
        for number in tl.static_range(HEADS):
            head = tl.program_id(1) * HEADS + number
            kv_head, folded = head // G, head % G
            first = (item.to(tl.int64) * K + kv_head) * (TILE * G) + query * G + folded
            best, total, acc_D = _join(
                tl.full([], float("-inf"), tl.float32), tl.full([], 0.0, tl.float32), tl.zeros([D_PAD], tl.float32),
                parts_JKMD, lse_JKM, first, K * TILE * G, parts, D, S, D_PAD,
            )  # fmt: skip
            for level in tl.static_range(LEVELS):
                member = tl.load(members_RL + row * LEVELS + level)
                if member >= 0:
                    place, run_parts = tl.load(places_M2 + member * 2), tl.load(places_M2 + member * 2 + 1)
                    in_tile = place % MEMBERS * G + folded
                    first = ((place // MEMBERS).to(tl.int64) * K + kv_head) * (MEMBERS * G) + in_tile
                    best, total, acc_D = _join(
                        best, total, acc_D, run_parts_JKMD, run_lse_JKM, first, K * MEMBERS * G, run_parts, D, S, D_PAD
                    )
            out = ((token + query) * (K * G) + head) * D
            tl.store(out_THD + out + d_D, (acc_D / total).to(out_THD.dtype.element_ty), mask=d_D < D)
