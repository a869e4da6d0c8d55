"""Online softmax: a tile of queries takes in keys and values, a block of positions at a time.

What a tile carries along are, for each of its rows, the best score, the sum of the weights relative to it, and the weighted
sum of the values. Scores are kept in base 2: `scale`, which is positive, comes multiplied by log2(e). With CAP they are
capped at so much, and with `slope_M` they fall by so much a position, both in base 2 as well.

Suffix legend: T tokens, K KV heads, X heads side by side, D head size, H pairs of dimensions, M rows of a tile (queries x
heads), N positions of a block.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton.jit import jit


@jit
def page_of(table_P, position, end, PAGE: tl.constexpr, N: tl.constexpr):
    """The page of each position of a block; one for all of them where a block lies in one page. Page 0 beyond `end`.

    Loaded a block ahead of its use, so that keys and values wait for no other load of their own turn of the loop, and
    the compiler can have several blocks of them on their way.
    """
    if N > PAGE:
        position += tl.arange(0, N)
    return tl.load(table_P + position // PAGE, mask=position < end, other=0)


@jit
def absorb(
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
    key_scales,
    value_scales,
    scale,
    slope_M,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Online softmax over positions [begin, end) in pages, `begin` a multiple of the smaller of N and PAGE.

    `keys` and `values` point at the KV head in page 0, and so do their scales, if there are any: one for each position and
    head. BOUNDED: the last block may reach beyond `end`, and positions
    before `low` are not seen. What no query sees is not read: it may hold anything, and NaN times a weight of 0 is NaN.
    """
    d_D = tl.arange(0, D_PAD)
    page = page_of(table_P, begin, end, PAGE, N)
    for position in tl.range(begin, end, N):
        position_N = position + tl.arange(0, N)
        inside_N = position_N < end
        if WINDOW:
            inside_N = inside_N & (position_N >= low)
        cell_N = page.to(tl.int64) * (K * PAGE) + position_N % PAGE
        page = page_of(table_P, position + N, end, PAGE, N)
        place_ND = cell_N[:, None] * D + d_D[None, :]
        k_place, v_place = keys + place_ND, values + place_ND
        if BOUNDED or D != D_PAD:
            inside_ND = inside_N[:, None] & (d_D[None, :] < D)
            k_ND = tl.load(k_place, mask=inside_ND, other=0.0).to(q_MD.dtype)
            v_ND = tl.load(v_place, mask=inside_ND, other=0.0).to(q_MD.dtype)
        else:
            k_ND = tl.load(k_place).to(q_MD.dtype)
            v_ND = tl.load(v_place).to(q_MD.dtype)
        k_scale_N, v_scale_N = None, None
        if key_scales is not None:
            k_scale_N = _load_N(key_scales + cell_N, inside_N, BOUNDED)
            v_scale_N = _load_N(value_scales + cell_N, inside_N, BOUNDED)
        best_M, total_M, acc_MD = _weigh(
            best_M, total_M, acc_MD, q_MD, k_ND, v_ND, k_scale_N, v_scale_N, position_M, position_N, inside_N, scale, slope_M,
            WINDOW, CAP, BOUNDED, CAUSAL,
        )  # fmt: skip
    return best_M, total_M, acc_MD


@jit
def _load_N(place_N, inside_N, BOUNDED: tl.constexpr):
    """One number of each position of a block."""
    if BOUNDED:
        return tl.load(place_N, mask=inside_N, other=0.0)
    return tl.load(place_N)


@jit
def _widen(pairs_NH, INTEGERS: tl.constexpr, CVT: tl.constexpr):
    """The even and the odd ones of float8_e4m3fn, or of int8, that lie in pairs, as float16, which holds all of them exactly."""
    if INTEGERS:
        wide_NH = pairs_NH.to(tl.int32)
        return ((wide_NH << 24) >> 24).to(tl.float16), (wide_NH >> 8).to(tl.float16)
    if CVT:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b16 low, high;
            .reg .b32 first, second;
            mov.b32 {low, high}, $2;
            cvt.rn.f16x2.e4m3x2 first, low;
            cvt.rn.f16x2.e4m3x2 second, high;
            prmt.b32 $0, first, second, 0x5410;
            prmt.b32 $1, first, second, 0x7632;
            }
            """,
            "=r,=r,r", [pairs_NH], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    even_NH = (pairs_NH & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    odd_NH = ((pairs_NH >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return even_NH.to(tl.float16), odd_NH.to(tl.float16)


@jit
def absorb_pairs(
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
    key_scales,
    value_scales,
    scale,
    slope_M,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    CVT: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """`absorb` where cells are float8_e4m3fn or int8 and queries of 16 bits.

    Cells are read as pairs, and even and odd dimensions go through products of their own: matrix units take operands of
    16 bits, which shared memory hands over transposed where it must, as it does not with single bytes. Products are in
    float16, to which e4m3 widens in one instruction; queries are cut to its range.
    """
    h_H = tl.arange(0, D_PAD // 2)
    INTEGERS: tl.constexpr = keys.dtype.element_ty == tl.int8
    keys, values = keys.to(tl.pointer_type(tl.int16)), values.to(tl.pointer_type(tl.int16))
    q_MD = tl.minimum(tl.maximum(q_MD.to(tl.float32), -65504.0), 65504.0).to(tl.float16)
    even_MH, odd_MH = tl.split(tl.reshape(q_MD, [M, D_PAD // 2, 2]))
    even_acc_MH, odd_acc_MH = tl.split(tl.reshape(acc_MD, [M, D_PAD // 2, 2]))
    page = page_of(table_P, begin, end, PAGE, N)
    for position in tl.range(begin, end, N):
        position_N = position + tl.arange(0, N)
        inside_N = position_N < end
        if WINDOW:
            inside_N = inside_N & (position_N >= low)
        cell_N = page.to(tl.int64) * (K * PAGE) + position_N % PAGE
        page = page_of(table_P, position + N, end, PAGE, N)
        place_NH = cell_N[:, None] * (D // 2) + h_H[None, :]
        k_place, v_place = keys + place_NH, values + place_NH
        if BOUNDED or D != D_PAD:
            inside_NH = inside_N[:, None] & (h_H[None, :] < D // 2)
            k_NH = tl.load(k_place, mask=inside_NH, other=0)
            v_NH = tl.load(v_place, mask=inside_NH, other=0)
        else:
            k_NH = tl.load(k_place)
            v_NH = tl.load(v_place)
        even_NH, odd_NH = _widen(k_NH, INTEGERS, CVT)
        score_MN = tl.dot(odd_MH, tl.trans(odd_NH), tl.dot(even_MH, tl.trans(even_NH)))
        if key_scales is not None:
            score_MN *= _load_N(key_scales + cell_N, inside_N, BOUNDED)[None, :]
        score_MN = _bend(score_MN, position_M, position_N, scale, slope_M, CAP)
        if BOUNDED:
            score_MN = tl.where(_seen(position_M, position_N, inside_N, WINDOW, CAUSAL), score_MN, float("-inf"))
        best_M, total_M, shrink_M, weight_MN = soften(best_M, total_M, score_MN, scale, slope_M, CAP, BOUNDED)
        if value_scales is not None:
            weight_MN *= _load_N(value_scales + cell_N, inside_N, BOUNDED)[None, :]
        weight_MN = weight_MN.to(tl.float16)
        even_NH, odd_NH = _widen(v_NH, INTEGERS, CVT)
        even_acc_MH = tl.dot(weight_MN, even_NH, even_acc_MH * shrink_M[:, None])
        odd_acc_MH = tl.dot(weight_MN, odd_NH, odd_acc_MH * shrink_M[:, None])
    return best_M, total_M, tl.interleave(even_acc_MH, odd_acc_MH)


@jit
def absorb_dense(
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
    slope_M,
    K: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
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
            best_M, total_M, acc_MD, q_MD, k_ND, v_ND, None, None, position_M, position_N, inside_N, scale, slope_M,
            WINDOW, CAP, BOUNDED, True,
        )  # fmt: skip
    return best_M, total_M, acc_MD


@jit
def oldest(position, WINDOW: tl.constexpr):
    """The first position that a query sees: with a WINDOW so many up to its own, with a negative one those of its chunk, with 0
    all."""
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    elif WINDOW < 0:
        first = position // -WINDOW * -WINDOW
    else:
        first = position * 0
    return first


@jit
def _seen(position_M, position_N, inside_N, WINDOW: tl.constexpr, CAUSAL: tl.constexpr):
    """Which positions of a block which query sees; without CAUSAL every query those that are inside."""
    seen_MN = inside_N[None, :]
    if CAUSAL:
        seen_MN = seen_MN & (position_N[None, :] <= position_M[:, None])
        if WINDOW > 0:
            seen_MN = seen_MN & (position_N[None, :] > position_M[:, None] - WINDOW)
        elif WINDOW < 0:
            seen_MN = seen_MN & (position_N[None, :] >= oldest(position_M, WINDOW)[:, None])
    return seen_MN


@jit
def _weigh(
    best_M,
    total_M,
    acc_MD,
    q_MD,
    k_ND,
    v_ND,
    k_scale_N,
    v_scale_N,
    position_M,
    position_N,
    inside_N,
    scale,
    slope_M,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One block's step of the online softmax. Without BOUNDED every query sees the whole block."""
    score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
    if k_scale_N is not None:
        score_MN *= k_scale_N[None, :]
    score_MN = _bend(score_MN, position_M, position_N, scale, slope_M, CAP)
    if BOUNDED:
        score_MN = tl.where(_seen(position_M, position_N, inside_N, WINDOW, CAUSAL), score_MN, float("-inf"))
    best_M, total_M, shrink_M, weight_MN = soften(best_M, total_M, score_MN, scale, slope_M, CAP, BOUNDED)
    acc_MD = acc_MD * shrink_M[:, None]
    if v_scale_N is not None:
        weight_MN *= v_scale_N[None, :]
    acc_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision="ieee")
    return best_M, total_M, acc_MD


@jit
def _bend(score_MN, position_M, position_N, scale, slope_M, CAP: tl.constexpr):
    """Scores that are more than products, scaled: capped (tanh by an exponential), and less by distance. Others as they are."""
    if CAP > 0:
        score_MN = CAP - 2.0 * CAP / (tl.exp2(score_MN * (scale * (2.8853900817779268 / CAP))) + 1.0)
    if slope_M is not None:
        if CAP == 0:
            score_MN *= scale
        score_MN += slope_M[:, None] * (position_N[None, :] - position_M[:, None]).to(tl.float32)
    return score_MN


@jit
def soften(best_M, total_M, score_MN, scale, slope_M, CAP: tl.constexpr, BOUNDED: tl.constexpr):
    """Weights of a block, and by what earlier ones shrink, as the best score of a query grows."""
    if CAP > 0 or slope_M is not None:  # scaled already
        scale = 1.0
    better_M = tl.maximum(best_M, tl.max(score_MN, axis=1) * scale)
    pivot_M = better_M
    if BOUNDED:  # a query that has seen nothing yet has best -inf, and -inf - -inf would be NaN
        pivot_M = tl.where(better_M == float("-inf"), 0.0, better_M)
    weight_MN = tl.exp2(score_MN * scale - pivot_M[:, None])
    shrink_M = tl.exp2(best_M - pivot_M)
    return better_M, total_M * shrink_M + tl.sum(weight_MN, axis=1), shrink_M, weight_MN
