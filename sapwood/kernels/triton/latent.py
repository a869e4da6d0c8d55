"""Attention over latents: pages of one vector a position, of which all query heads make their keys and values.

A layer's latents lie as [page, cell of the page, W], a vector being `R` numbers that are keys and values and `P` turned ones that
are keys alone. Queries come absorbed: [R that the latents are compared with | P that the turned ones are], so what is summed up
are latents, and nothing of a head's own is ever read for each position (DeepSeek-V2, 2024, section 2.1.2).

Items, parts and runs are those of `sapwood.kernels.triton.paged`: K programs work on an item side by side, each for G query
heads; they read the same latents, which the caches between have.

Suffix legend: T tokens, H query heads, W = R + P, Q halves of P, J items, K programs of an item, M rows of a tile (queries x
heads), N positions of a block, L levels of shared runs, S parts read at once, B rows of a tile as parts hold them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import RmsNorm
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.blocks import page_of, soften
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.parts import arrive, join, join_runs, leave, mean, nothing, runs_of, write

HEADS = 16
"""Query heads that one program turns."""
FEW = tl.constexpr(2)
"""Parts of runs that a tile joins to its own while that is in registers."""


@jit
def _turn(place, q, inside, cos, sin, Q: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both halves of what lies at `place`, turned. Dimension q goes with the next if INTERLEAVED, else with that a half on."""
    if INTERLEAVED:
        low = tl.load(place + 2 * q, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(place + 2 * q + 1, mask=inside, other=0.0).to(tl.float32)
    else:
        low = tl.load(place + q, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(place + Q + q, mask=inside, other=0.0).to(tl.float32)
    return low * cos - high * sin, high * cos + low * sin


@jit(do_not_specialize_on_alignment=["cells_T"])
def _place(
    queries_THW,
    latents_TW,
    latent_stride,
    weight_R,
    eps,
    cos_TQ,
    sin_TQ,
    cells_T,
    kept,
    H: tl.constexpr,
    R: tl.constexpr,
    Q: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
    R_PAD: tl.constexpr,
    Q_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (T, 1 + ceil(H / BLOCK)): the first program of a token norms and keeps its latent, the others turn queries."""
    token = tl.program_id(0).to(tl.int64)
    q = tl.arange(0, Q_PAD)
    if PDL:
        pdl.join()
    cos = tl.load(cos_TQ + token * Q + q, mask=q < Q, other=0.0)
    sin = tl.load(sin_TQ + token * Q + q, mask=q < Q, other=0.0)
    dtype = queries_THW.dtype.element_ty
    if tl.program_id(1) == 0:
        r = tl.arange(0, R_PAD)
        latent = tl.load(latents_TW + token * latent_stride + r, mask=r < R, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(latent * latent, axis=0) / R + eps)
        latent = latent * factor * tl.load(weight_R + r, mask=r < R, other=0.0)
        low, high = _turn(latents_TW + token * latent_stride + R, q, q < Q, cos, sin, Q, INTERLEAVED)
        stored = kept.dtype.element_ty
        target = kept + tl.load(cells_T + token) * (R + 2 * Q)
        # Rounded to the activations' dtype first, as whatever else is made of them.
        tl.store(target + r, latent.to(dtype).to(stored), mask=r < R)
        tl.store(target + R + q, low.to(dtype).to(stored), mask=q < Q)
        tl.store(target + R + Q + q, high.to(dtype).to(stored), mask=q < Q)
    else:
        h = (tl.program_id(1) - 1) * BLOCK + tl.arange(0, BLOCK)
        inside = (h < H)[:, None] & (q < Q)[None, :]
        place = queries_THW + (token * H + h[:, None]) * (R + 2 * Q) + R
        lows, highs = _turn(place, q[None, :], inside, cos[None, :], sin[None, :], Q, INTERLEAVED)
        if INTERLEAVED:
            tl.debug_barrier()  # what one thread writes another has read
        tl.store(place + q[None, :], lows.to(dtype), mask=inside)
        tl.store(place + Q + q[None, :], highs.to(dtype), mask=inside)


def place(
    queries_THW: Tensor,
    latents_TW: Tensor,
    norm: RmsNorm,
    cos_TQ: Tensor,
    sin_TQ: Tensor,
    cells_T: Tensor,
    kept: Tensor,
    *,
    rank: int,
    interleaved: bool,
) -> None:
    """Turn the queries' last part in place, as halves; norm the latents' first `rank`, turn the rest, and write both to their
    cells of `kept`, one layer's [page, cell, W] in any float dtype.

    `queries_THW` is contiguous, `latents_TW` along its last axis; cos and sin are float32; `cells_T` int64.
    """
    num_tokens, num_heads, _ = queries_THW.shape
    half = cos_TQ.shape[-1]
    join_early = pdl.supported(queries_THW.device)
    _place[(num_tokens, 1 + triton.cdiv(num_heads, HEADS))](
        queries_THW, latents_TW, latents_TW.stride(0), norm.weight_E, norm.eps, cos_TQ, sin_TQ, cells_T, kept,
        H=num_heads, R=rank, Q=half, INTERLEAVED=interleaved, BLOCK=HEADS, R_PAD=triton.next_power_of_2(rank),
        Q_PAD=triton.next_power_of_2(half), PDL=join_early, num_warps=4, launch_pdl=join_early,
    )  # fmt: skip


@jit
def _queries(
    queries, start_M, head_M, valid_M, W: tl.constexpr, OFFSET: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr
):
    """Numbers [OFFSET, OFFSET + D) of a tile's queries [M, PAD]."""
    d = tl.arange(0, PAD)
    place = start_M[:, None] + head_M[:, None] * W + OFFSET + d[None, :]
    return tl.load(queries + place, mask=valid_M[:, None] & (d[None, :] < D), other=0.0)


@jit
def _absorb(
    best_M,
    total_M,
    acc_MR,
    q_MR,
    q_MP,
    position_M,
    begin,
    end,
    table_P,
    latents,
    scale,
    R: tl.constexpr,
    P: tl.constexpr,
    PAGE: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    N: tl.constexpr,
    R_PAD: tl.constexpr,
    P_PAD: tl.constexpr,
):
    """Online softmax over positions [begin, end) in pages, as `blocks.absorb`: keys are whole vectors, values their first R."""
    r, p = tl.arange(0, R_PAD), tl.arange(0, P_PAD)
    page = page_of(table_P, begin, end, PAGE, N)
    for position in tl.range(begin, end, N):
        position_N = position + tl.arange(0, N)
        inside_N = position_N < end
        cell_N = page.to(tl.int64) * (PAGE * (R + P)) + (position_N % PAGE) * (R + P)
        page = page_of(table_P, position + N, end, PAGE, N)
        if BOUNDED or R != R_PAD or P != P_PAD:
            kv_NR = tl.load(
                latents + cell_N[:, None] + r[None, :], mask=inside_N[:, None] & (r < R)[None, :], other=0.0
            )
            k_NP = tl.load(
                latents + cell_N[:, None] + R + p[None, :], mask=inside_N[:, None] & (p < P)[None, :], other=0.0
            )
        else:
            kv_NR = tl.load(latents + cell_N[:, None] + r[None, :])
            k_NP = tl.load(latents + cell_N[:, None] + R + p[None, :])
        kv_NR, k_NP = kv_NR.to(q_MR.dtype), k_NP.to(q_MR.dtype)
        score_MN = tl.dot(q_MP, tl.trans(k_NP), input_precision="ieee")
        score_MN = tl.dot(q_MR, tl.trans(kv_NR), score_MN, input_precision="ieee")
        if BOUNDED:
            seen_MN = inside_N[None, :]
            if CAUSAL:
                seen_MN = seen_MN & (position_N[None, :] <= position_M[:, None])
            score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        best_M, total_M, shrink_M, weight_MN = soften(best_M, total_M, score_MN, scale, None, 0, BOUNDED)
        acc_MR = tl.dot(weight_MN.to(kv_NR.dtype), kv_NR, acc_MR * shrink_M[:, None], input_precision="ieee")
    return best_M, total_M, acc_MR


@jit(do_not_specialize_on_alignment=["members_QL", "places_M2"])
def attend(
    queries_THW,
    latents,
    out_THR,
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
    K: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    PAGE: tl.constexpr,
    MEMBERS: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    B: tl.constexpr,
    ALONE: tl.constexpr,
    R_PAD: tl.constexpr,
    P_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attention of rows that yield and of spans, in tiles of up to TILE queries. Grid (K, items).

    With LEVELS, the parts of the runs that a query is a member of join its own, as in `paged.attend_rows`.
    """
    if PDL:
        if LEVELS:
            pdl.follow()
        else:
            pdl.join()
    program, item = tl.program_id(0), tl.program_id(1)
    record = items_JW + item * 8
    count = tl.load(record + 1)
    if count > 0:
        first, position, slot = tl.load(record), tl.load(record + 2), tl.load(record + 3)
        begin, end = tl.load(record + 4), tl.load(record + 5)
        m_M, b_B = tl.arange(0, M), tl.arange(0, B)
        query_M, query_B = m_M // G, b_B // G
        valid_M, valid_B = query_M < count, query_B < count
        if LEVELS:
            origin = tl.load(record + 7)
            asked_M1 = origin + tl.minimum(query_M, count - 1)[:, None]
            place_ML, run_parts_ML = runs_of(members_QL, places_M2, asked_M1, LEVELS)
            few = tl.max(tl.sum(run_parts_ML, axis=1), axis=0) <= FEW
        token_M = (first + query_M).to(tl.int64)
        head_M = program * G + m_M % G
        start_M = token_M * (K * G * (R + P))
        q_MR = _queries(queries_THW, start_M, head_M, valid_M, R + P, 0, R, R_PAD)
        q_MP = _queries(queries_THW, start_M, head_M, valid_M, R + P, R, P, P_PAD)

        best_M, total_M, acc_MR = nothing(M, R_PAD)
        position_M = position + query_M
        table_P = tables_SP + slot.to(tl.int64) * table_stride
        # Whole blocks that every query of the tile sees need no mask.
        clear = begin + tl.maximum(tl.minimum(position + 1, end) - begin, 0) // N * N
        best_M, total_M, acc_MR = _absorb(
            best_M, total_M, acc_MR, q_MR, q_MP, position_M, begin, clear, table_P, latents, scale,
            R, P, PAGE, False, False, N, R_PAD, P_PAD,
        )  # fmt: skip
        best_M, total_M, acc_MR = _absorb(
            best_M, total_M, acc_MR, q_MR, q_MP, position_M, clear, end, table_P, latents, scale,
            R, P, PAGE, True, True, N, R_PAD, P_PAD,
        )  # fmt: skip

        if PDL and LEVELS > 0:
            pdl.catch_up()
        apart = tl.load(record + 6)
        if LEVELS:  # noqa: SIM102
            if (apart == 1) & few:
                best_M, total_M, acc_MR = join_runs(
                    best_M, total_M, acc_MR, valid_M, run_parts_JKMD, run_lse_JKM, place_ML, run_parts_ML, m_M % G,
                    program, K, G, R, MEMBERS, LEVELS, False, ALONE, R_PAD,
                )  # fmt: skip
                apart = 0
        mean_MR = mean(total_M, acc_MR)
        if apart == 0:
            write(out_THR, token_M * (K * G) + head_M, valid_M, mean_MR, R, R_PAD)
        elif parts_JKMD is not None:
            place_M = (item.to(tl.int64) * K + program) * (TILE * G) + m_M
            leave(parts_JKMD, lse_JKM, place_M, valid_M, best_M, total_M, mean_MR, R, R_PAD)
            last, lead, parts = arrive(arrived_JK, items_JW, item, program, apart, K)
            if last:
                best_B, total_B, acc_BR = nothing(B, R_PAD)
                best_B, total_B, acc_BR = join(
                    best_B, total_B, acc_BR, valid_B, parts_JKMD, lse_JKM, (lead * K + program) * (TILE * G), b_B,
                    K * TILE * G, parts, parts, R, S, R_PAD,
                )  # fmt: skip
                if LEVELS:
                    asked_B1 = origin + tl.minimum(query_B, count - 1)[:, None]
                    place_BL, run_parts_BL = runs_of(members_QL, places_M2, asked_B1, LEVELS)
                    best_B, total_B, acc_BR = join_runs(
                        best_B, total_B, acc_BR, valid_B, run_parts_JKMD, run_lse_JKM, place_BL, run_parts_BL, b_B % G,
                        program, K, G, R, MEMBERS, LEVELS, False, S, R_PAD,
                    )  # fmt: skip
                place_B = (first + query_B).to(tl.int64) * (K * G) + program * G + b_B % G
                write(out_THR, place_B, valid_B, mean(total_B, acc_BR), R, R_PAD)
    elif PDL and LEVELS > 0:
        pdl.catch_up()


@jit(do_not_specialize_on_alignment=["tokens_of", "used_1"])
def attend_runs(
    queries_THW,
    latents,
    parts_JKMD,
    lse_JKM,
    items_JW,
    tokens_of,
    used_1,
    tables_SP,
    table_stride,
    scale,
    K: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    R_PAD: tl.constexpr,
    P_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Parts of runs, in tiles of up to TILE members, of which `tokens_of` names the tokens. Grid (programs,), as
    `paged.attend_runs`."""
    if PDL:
        pdl.lead()
    zero = tl.program_id(1)  # in the interpreter, what is added to it becomes a tensor
    for number in range(tl.program_id(0), tl.load(used_1) * K, tl.num_programs(0)):
        item, program = zero + number // K, zero + number % K
        record = items_JW + item * 8
        count = tl.load(record + 1)
        first, slot = tl.load(record), tl.load(record + 3)
        begin, end = tl.load(record + 4), tl.load(record + 5)
        m_M = tl.arange(0, M)
        query_M = m_M // G
        valid_M = query_M < count
        start_M = tl.load(tokens_of + first + query_M, mask=valid_M, other=0).to(tl.int64) * (K * G * (R + P))
        head_M = program * G + m_M % G
        q_MR = _queries(queries_THW, start_M, head_M, valid_M, R + P, 0, R, R_PAD)
        q_MP = _queries(queries_THW, start_M, head_M, valid_M, R + P, R, P, P_PAD)

        best_M, total_M, acc_MR = nothing(M, R_PAD)
        table_P = tables_SP + slot.to(tl.int64) * table_stride
        clear = begin + tl.maximum(end - begin, 0) // N * N
        best_M, total_M, acc_MR = _absorb(
            best_M, total_M, acc_MR, q_MR, q_MP, query_M, begin, clear, table_P, latents, scale,
            R, P, PAGE, False, False, N, R_PAD, P_PAD,
        )  # fmt: skip
        best_M, total_M, acc_MR = _absorb(
            best_M, total_M, acc_MR, q_MR, q_MP, query_M, clear, end, table_P, latents, scale,
            R, P, PAGE, True, False, N, R_PAD, P_PAD,
        )  # fmt: skip
        place_M = (item.to(tl.int64) * K + program) * (TILE * G) + m_M
        leave(parts_JKMD, lse_JKM, place_M, valid_M, best_M, total_M, mean(total_M, acc_MR), R, R_PAD)
