"""Attention of prompts over latents that were expanded again: each head has keys and values of its own.

Absorbed, a query meets a latent with rank + rank numbers; expanded with those of a head, which are a third at DeepSeek's sizes. Many
queries are worth the expansion. What was expanded lies as [L, head, key | value], the contexts of all spans one behind the other, and
the turned part that all heads share beside the latents, as they were gathered.

Suffix legend: N spans, L positions of all contexts, M queries of a tile, B positions of a block, K size of a head's own key, P turned
numbers, V size of a value.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.triton.blocks import soften
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.parts import mean, nothing


class Cut(NamedTuple):
    """Queries of a tile, positions of a block, warps, stages."""

    queries: int
    block: int
    warps: int
    stages: int


@jit
def _absorb(
    best_M, total_M, acc_MV, q_MK, q_MP, position_M, begin, end, keys, turned, key_stride, turned_stride, scale,
    K: tl.constexpr, P: tl.constexpr, V: tl.constexpr, BOUNDED: tl.constexpr, B: tl.constexpr,
    K_PAD: tl.constexpr, P_PAD: tl.constexpr, V_PAD: tl.constexpr,
):  # fmt: skip
    k, p, v = tl.arange(0, K_PAD)[None, :], tl.arange(0, P_PAD)[None, :], tl.arange(0, V_PAD)[None, :]
    for first in tl.range(begin, end, B):
        position_B = first + tl.arange(0, B)
        at_B1 = position_B.to(tl.int64)[:, None]
        if BOUNDED or K != K_PAD or P != P_PAD or V != V_PAD:
            there = (position_B < end)[:, None]
            key_BK = tl.load(keys + at_B1 * key_stride + k, mask=there & (k < K), other=0.0)
            turned_BP = tl.load(turned + at_B1 * turned_stride + p, mask=there & (p < P), other=0.0)
            value_BV = tl.load(keys + at_B1 * key_stride + K + v, mask=there & (v < V), other=0.0)
        else:
            key_BK = tl.load(keys + at_B1 * key_stride + k)
            turned_BP = tl.load(turned + at_B1 * turned_stride + p)
            value_BV = tl.load(keys + at_B1 * key_stride + K + v)
        score_MB = tl.dot(q_MP, tl.trans(turned_BP), input_precision="ieee")
        score_MB = tl.dot(q_MK, tl.trans(key_BK), score_MB, input_precision="ieee")
        if BOUNDED:
            seen_MB = (position_B < end)[None, :] & (position_B[None, :] <= position_M[:, None])
            score_MB = tl.where(seen_MB, score_MB, float("-inf"))
        best_M, total_M, shrink_M, weight_MB = soften(best_M, total_M, score_MB, scale, None, 0, BOUNDED)
        acc_MV = tl.dot(weight_MB.to(value_BV.dtype), value_BV, acc_MV * shrink_M[:, None], input_precision="ieee")
    return best_M, total_M, acc_MV


@jit(do_not_specialize_on_alignment=["firsts_N"])
def _attend(
    queries, query_token, query_head, asked, asked_token, asked_head, expanded, expanded_stride, turned, turned_stride,
    out, out_head, out_token, firsts_N, counts_N, ends_N, bases_N, scale,
    K: tl.constexpr, P: tl.constexpr, V: tl.constexpr, M: tl.constexpr, B: tl.constexpr,
    K_PAD: tl.constexpr, P_PAD: tl.constexpr, V_PAD: tl.constexpr,
):  # fmt: skip
    """Grid (heads, spans, tiles), the last tile first, which sees the most."""
    head, span = tl.program_id(0), tl.program_id(1)
    tile, count = (tl.num_programs(2) - 1 - tl.program_id(2)) * M, tl.load(counts_N + span)
    if tile < count:
        end = tl.load(ends_N + span)
        start, m = end - count, tile + tl.arange(0, M)
        valid_M1, position_M = (m < count)[:, None], start + m
        token_M1 = (tl.load(firsts_N + span) + m).to(tl.int64)[:, None]
        k, p, v = tl.arange(0, K_PAD)[None, :], tl.arange(0, P_PAD)[None, :], tl.arange(0, V_PAD)[None, :]
        q_MK = tl.load(queries + token_M1 * query_token + head * query_head + k, mask=valid_M1 & (k < K), other=0.0)
        q_MP = tl.load(asked + token_M1 * asked_token + head * asked_head + p, mask=valid_M1 & (p < P), other=0.0)
        base = tl.load(bases_N + span)
        keys = expanded + base * expanded_stride + head * (K + V)
        shared = turned + base * turned_stride
        best_M, total_M, acc_MV = nothing(M, V_PAD)
        clear = (start + tile + 1) // B * B
        last = tl.minimum(end, start + tile + M)
        best_M, total_M, acc_MV = _absorb(
            best_M, total_M, acc_MV, q_MK, q_MP, position_M, 0, clear, keys, shared, expanded_stride, turned_stride, scale,
            K, P, V, False, B, K_PAD, P_PAD, V_PAD,
        )  # fmt: skip
        best_M, total_M, acc_MV = _absorb(
            best_M, total_M, acc_MV, q_MK, q_MP, position_M, clear, last, keys, shared, expanded_stride, turned_stride, scale,
            K, P, V, True, B, K_PAD, P_PAD, V_PAD,
        )  # fmt: skip
        place = out + head.to(tl.int64) * out_head + token_M1 * out_token + v
        tl.store(place, mean(total_M, acc_MV).to(out.dtype.element_ty), mask=valid_M1 & (v < V))


class Spans(NamedTuple):
    """Of each span its first token in the step, its tokens (0: it is not computed here), where it ends, and where its context
    begins among all (int64, the others int32); and the most tokens that one has."""

    firsts_N: Tensor
    counts_N: Tensor
    ends_N: Tensor
    bases_N: Tensor
    longest: int


def attend(
    q_THK: Tensor,
    asked_THP: Tensor,
    expanded_LHX: Tensor,
    turned_LP: Tensor,
    out_HTV: Tensor,
    spans: Spans,
    scale: float,
    cut: Cut,
) -> None:
    """Write the sums of the spans' tokens to `out_HTV`. `scale` is that of exponents of 2; strides are anything but along the last axes."""
    num_heads, own = q_THK.shape[1:]
    value, rope = out_HTV.shape[2], asked_THP.shape[2]
    assert expanded_LHX.shape[1:] == (num_heads, own + value) and expanded_LHX[:1].is_contiguous()
    assert q_THK.stride(2) == asked_THP.stride(2) == turned_LP.stride(1) == out_HTV.stride(2) == 1
    pads = {
        f"{name}_PAD": max(16, triton.next_power_of_2(size))
        for name, size in zip("KPV", (own, rope, value), strict=True)
    }
    _attend[(num_heads, len(spans.counts_N), triton.cdiv(spans.longest, cut.queries))](
        q_THK, q_THK.stride(0), q_THK.stride(1), asked_THP, asked_THP.stride(0), asked_THP.stride(1),
        expanded_LHX, expanded_LHX.stride(0), turned_LP, turned_LP.stride(0), out_HTV, out_HTV.stride(0), out_HTV.stride(1),
        *spans[:4], scale,
        K=own, P=rope, V=value, M=cut.queries, B=cut.block, **pads, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
