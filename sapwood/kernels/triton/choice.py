"""Which experts each token gets, and the tokens of each expert: decided on the device.

Suffix legend: T tokens, X experts, K experts of a token, P = T K pairs of both in the order of tokens, G groups of S experts.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import Routed
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.jit import jit


@jit
def _choose(
    logits_TX,
    stride,
    offsets_X,
    experts_TK,
    weights_TK,
    X: tl.constexpr,
    K: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISED: tl.constexpr,
    SCALE: tl.constexpr,
    SLACK: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    PDL: tl.constexpr,
    G_PAD: tl.constexpr,
    S_PAD: tl.constexpr,
    K_PAD: tl.constexpr,
):
    """Grid (T,). What is not a number is chosen last, and makes weights that are none either."""
    SIZE: tl.constexpr = X // GROUPS
    if PDL:
        pdl.join()
    token = tl.program_id(0).to(tl.int64)
    g_G, s_S, k_K = tl.arange(0, G_PAD), tl.arange(0, S_PAD), tl.arange(0, K_PAD)
    x_GS = g_G[:, None] * SIZE + s_S[None, :]
    inside = (g_G < GROUPS)[:, None] & (s_S < SIZE)[None, :]
    place = tl.where(inside, x_GS, 0)
    logit = tl.load(logits_TX + token * stride + place).to(tl.float32)
    logit = tl.where(inside, logit, float("-inf"))
    if SCORE == "softmax":
        score = tl.exp(logit - _most(logit))
        score = score / tl.sum(tl.sum(score, axis=1), axis=0)
    elif SCORE == "sigmoid":
        score = 1.0 / (1.0 + tl.exp(-logit))
    else:
        score = logit
    rank = score
    if offsets_X is not None:
        rank += tl.load(offsets_X + place)
    rank = tl.where(inside & (rank == rank), rank, float("-inf"))
    if GROUPS > 1:
        rank = _within_groups(rank, x_GS, g_G, GROUPS, TOP_GROUPS, GROUP_BEST)

    experts = tl.zeros([K_PAD], tl.int32)
    weights = tl.zeros([K_PAD], tl.float32)
    for k in tl.static_range(K):
        most = _most(rank)
        best = _least(tl.where(inside & (rank == most), x_GS, X))
        chosen = x_GS == best
        if SCORE == "sparsemix":
            far = (most - logit) / tl.maximum(tl.abs(logit), most) > SLACK
            near = tl.exp(tl.where(far, float("-inf"), rank) - most)
            weight = 1.0 / tl.sum(tl.sum(near, axis=1), axis=0)
        else:
            weight = tl.sum(tl.sum(tl.where(chosen, score, 0.0), axis=1), axis=0)
        experts = tl.where(k_K == k, best, experts)
        weights = tl.where(k_K == k, weight, weights)
        rank = tl.where(chosen, float("-inf"), rank)
    if RENORMALISED:
        weights = weights / tl.sum(weights, axis=0)
    tl.store(experts_TK + token * K + k_K, experts, mask=k_K < K)
    tl.store(weights_TK + token * K + k_K, weights * SCALE, mask=k_K < K)


@jit
def _most(x_GS):
    return tl.max(tl.max(x_GS, axis=1), axis=0)


@jit
def _least(x_GS):
    return tl.min(tl.min(x_GS, axis=1), axis=0)


@jit
def _within_groups(rank, x_GS, g_G, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_BEST: tl.constexpr):
    """With minus infinity outside the groups whose best add up to most."""
    left = rank
    total_G = tl.zeros_like(tl.max(rank, axis=1))
    for _ in tl.static_range(GROUP_BEST):
        most_G = tl.max(left, axis=1)
        total_G += most_G
        first_G = tl.min(tl.where(left == most_G[:, None], x_GS, 1 << 30), axis=1)
        left = tl.where(x_GS == first_G[:, None], float("-inf"), left)
    total_G = tl.where(g_G < GROUPS, total_G, float("-inf"))
    kept_G = tl.zeros_like(g_G)
    for _ in tl.static_range(TOP_GROUPS):
        most = tl.max(total_G, axis=0)
        first = tl.min(tl.where((total_G == most) & (kept_G == 0), g_G, 1 << 30), axis=0)
        kept_G = tl.where(g_G == first, 1, kept_G)
        total_G = tl.where(g_G == first, float("-inf"), total_G)
    return tl.where((kept_G == 1)[:, None], rank, float("-inf"))


@jit(do_not_specialize=["P"])
def _deal(experts_P, order_P, starts_X1, P, PDL: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (X,). Program x finds where the pairs of expert x begin in the sorted order, and puts them there."""
    if PDL:
        pdl.join()
    x = tl.program_id(0)
    p_B = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    own = tl.zeros([BLOCK], tl.int32)
    for first in tl.range(0, P, BLOCK):
        expert = tl.load(experts_P + first + p_B, mask=first + p_B < P, other=1 << 30)
        before += (expert < x).to(tl.int32)
        own += (expert == x).to(tl.int32)
    start = tl.sum(before, axis=0)
    end = start + tl.sum(own, axis=0)
    tl.store(starts_X1 + x, start)
    if x == tl.num_programs(0) - 1:
        tl.store(starts_X1 + x + 1, end)
    for first in tl.range(0, P, BLOCK):
        expert = tl.load(experts_P + first + p_B, mask=first + p_B < P, other=1 << 30)
        mine = (expert == x).to(tl.int32)
        place = start + tl.cumsum(mine, axis=0) - 1
        tl.store(order_P + place, first + p_B, mask=mine == 1)
        start += tl.sum(mine, axis=0)


@jit
def tile_of(starts_X1, tile, P, X: tl.constexpr, X_PAD: tl.constexpr, TILE: tl.constexpr):
    """(the expert of a tile of TILE pairs, the number of tiles before its own); the expert is X where there is no such tile."""
    x_X = tl.arange(0, X_PAD)
    start_X = tl.load(starts_X1 + x_X, mask=x_X < X, other=P)
    end_X = tl.load(starts_X1 + x_X + 1, mask=x_X < X, other=P)
    tiles_X = tl.cumsum((end_X - start_X + TILE - 1) // TILE, axis=0)
    expert = tl.sum((tiles_X <= tile).to(tl.int32), axis=0)
    return expert, tl.max(tl.where(tiles_X <= tile, tiles_X, 0), axis=0)


def choose(logits_TX: Tensor, how: Routed) -> tuple[Tensor, Tensor]:
    """(experts_TK, weights_TK), int32 and float32: as `sapwood.kernels.experts.select`."""
    (num_tokens, count), by, device = logits_TX.shape, how.selection, logits_TX.device
    experts_TK = torch.empty((num_tokens, by.top), dtype=torch.int32, device=device)
    weights_TK = torch.empty((num_tokens, by.top), dtype=torch.float32, device=device)
    early = pdl.supported(device)
    _choose[(num_tokens,)](
        logits_TX, logits_TX.stride(0), how.offsets_X, experts_TK, weights_TK,
        X=count, K=by.top, SCORE=by.score, RENORMALISED=by.renormalised, SCALE=by.scale, SLACK=by.slack,
        GROUPS=by.groups, TOP_GROUPS=by.top_groups, GROUP_BEST=by.group_best, PDL=early,
        G_PAD=triton.next_power_of_2(by.groups), S_PAD=triton.next_power_of_2(count // by.groups),
        K_PAD=triton.next_power_of_2(by.top), num_warps=1 if count <= 256 else 4, launch_pdl=early,
    )  # fmt: skip
    return experts_TK, weights_TK


def deal(experts_TK: Tensor, count: int, *, block: int = 8192) -> tuple[Tensor, Tensor]:
    """(order_P, starts_X1): the pairs by expert, those of one in the order of tokens, and where each expert's begin."""
    pairs, device = experts_TK.numel(), experts_TK.device
    order_P = torch.empty(pairs, dtype=torch.int32, device=device)
    starts_X1 = torch.empty(count + 1, dtype=torch.int32, device=device)
    early = pdl.supported(device)
    block = min(block, triton.next_power_of_2(pairs))
    _deal[(count,)](
        experts_TK,
        order_P,
        starts_X1,
        pairs,
        PDL=early,
        BLOCK=block,
        num_warps=4 if block <= 2048 else 16,
        launch_pdl=early,
    )
    return order_P, starts_X1
