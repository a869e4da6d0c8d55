"""The products of experts, in the order that sums always have.

Few tokens: each expert of each token is a product of its own, bound by how fast its weights can be read. More: the pairs of a
token and one of its experts are sorted by expert, and products go over tiles of one expert's pairs.

Suffix legend: T tokens, X experts, K experts of a token, P = T K pairs in the order of tokens, E hidden size, M inner size of
an expert, I inputs and O outputs of a product.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import RmsNorm, Routed
from sapwood.kernels.planes import StackedPlanes
from sapwood.kernels.triton import experts_coded, pdl
from sapwood.kernels.triton.choice import choose, deal, tile_of
from sapwood.kernels.triton.experts_cut import FEW, Cut, cut_for
from sapwood.kernels.triton.gate import through_gate
from sapwood.kernels.triton.jit import jit


@jit
def _up_of_one(
    x_TE,
    stride,
    gain_E,
    eps,
    experts_P,
    weights_P,
    weight_XOE,
    bias_XO,
    inner_PM,
    E: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    KIND: tl.constexpr,
    WEIGHED: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (ceil(M / ROWS), P): activation(gate) * up of a pair's token, normed with `gain_E`."""
    pair = tl.program_id(1)
    o_O = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if PDL:
        pdl.join()
    expert = tl.load(experts_P + pair).to(tl.int64)
    row_O = tl.minimum(o_O, M - 1).to(tl.int64)
    gate_OE = weight_XOE + (expert * 2 * M + row_O)[:, None] * E
    x_E = x_TE + (pair // K) * stride
    gate = tl.zeros([ROWS, DEPTH], tl.float32)
    up = tl.zeros([ROWS, DEPTH], tl.float32)
    squares = tl.zeros([DEPTH], tl.float32)
    for first in tl.range(0, E, DEPTH, num_stages=STAGES):
        e = first + tl.arange(0, DEPTH)
        inside = e < E
        x = tl.load(x_E + e, mask=inside, other=0.0).to(tl.float32)
        if gain_E is not None:
            squares += x * x
            x *= tl.load(gain_E + e, mask=inside, other=0.0)
        place = gate_OE + e[None, :]
        if E % DEPTH == 0:
            gate += tl.load(place).to(tl.float32) * x[None, :]
            up += tl.load(place + M * E).to(tl.float32) * x[None, :]
        else:
            gate += tl.load(place, mask=inside[None, :], other=0.0).to(tl.float32) * x[None, :]
            up += tl.load(place + M * E, mask=inside[None, :], other=0.0).to(tl.float32) * x[None, :]
    gate_O, up_O = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    factor = 1.0
    if gain_E is not None:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / E + eps)
    if WEIGHED:
        factor *= tl.load(weights_P + pair)
    gate_O *= factor
    up_O *= factor
    if bias_XO is not None:
        gate_O += tl.load(bias_XO + expert * 2 * M + row_O).to(tl.float32)
        up_O += tl.load(bias_XO + expert * 2 * M + M + row_O).to(tl.float32)
    out = through_gate(gate_O, up_O, KIND)
    tl.store(inner_PM + pair * M + o_O, out.to(inner_PM.dtype.element_ty), mask=o_O < M)


@jit
def _down_of_one(
    inner_PM,
    experts_P,
    weights_P,
    weight_XEM,
    bias_XE,
    out_TE,
    E: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    WEIGHED: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (ceil(E / ROWS), T): the sum over a token's experts, times their weights if WEIGHED."""
    token = tl.program_id(1)
    o_O = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if PDL:
        pdl.join()
    row_O = tl.minimum(o_O, E - 1).to(tl.int64)
    STEPS: tl.constexpr = (M + DEPTH - 1) // DEPTH
    acc = tl.zeros([ROWS, DEPTH], tl.float32)
    bias_O = tl.zeros([ROWS], tl.float32)
    for step in tl.range(0, K * STEPS, num_stages=STAGES):
        pair = token * K + step // STEPS
        m = step % STEPS * DEPTH + tl.arange(0, DEPTH)
        expert = tl.load(experts_P + pair).to(tl.int64)
        x = tl.load(inner_PM + pair * M + m, mask=m < M, other=0.0).to(tl.float32)
        if WEIGHED:
            x *= tl.load(weights_P + pair)
        place = weight_XEM + (expert * E + row_O)[:, None] * M + m[None, :]
        if M % DEPTH == 0:
            acc += tl.load(place).to(tl.float32) * x[None, :]
        else:
            acc += tl.load(place, mask=(m < M)[None, :], other=0.0).to(tl.float32) * x[None, :]
        if bias_XE is not None:
            bias = tl.load(bias_XE + expert * E + row_O).to(tl.float32)
            if WEIGHED:
                bias *= tl.load(weights_P + pair)
            bias_O += tl.where(step % STEPS == 0, bias, 0.0)
    out = tl.sum(acc, axis=1) + bias_O
    tl.store(out_TE + token.to(tl.int64) * E + o_O, out.to(out_TE.dtype.element_ty), mask=o_O < E)


@jit(do_not_specialize=["P"])
def _grouped(
    x,
    stride,
    order_P,
    starts_X1,
    weights_P,
    weight_XOI,
    bias_XO,
    out,
    P,
    X: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    KIND: tl.constexpr,
    WEIGHED: tl.constexpr,
    PDL: tl.constexpr,
    X_PAD: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Grid (tiles * ceil(OUT / ROWS),): a tile of one expert's pairs times some of its rows.

    With a KIND of activation the first of two products, of the token's row of x, for the place in the sorted order; without,
    the second, of that place, for the pair. TURNED: tokens are the columns of the tile, as few of them are.
    """
    BLOCKS: tl.constexpr = (OUT + ROWS - 1) // ROWS
    GATED: tl.constexpr = KIND is not None
    program = tl.program_id(0)
    if PDL:
        pdl.join()
    tile = program // BLOCKS
    expert, before = tile_of(starts_X1, tile, P, X, X_PAD, TILE)
    if expert >= X:
        return
    first = tl.load(starts_X1 + expert) + (tile - before) * TILE
    end = tl.load(starts_X1 + expert + 1)

    at_T = first + tl.arange(0, TILE)
    inside_T = at_T < end
    pair_T = tl.load(order_P + at_T, mask=inside_T, other=0)
    row_T = pair_T // K if GATED else at_T
    o_O = program % BLOCKS * ROWS + tl.arange(0, ROWS)
    row_O = tl.minimum(o_O, OUT - 1)
    HALVES: tl.constexpr = 2 if GATED else 1
    base = weight_XOI + expert.to(tl.int64) * (HALVES * OUT * IN)
    x_T = x + tl.where(inside_T, row_T, 0).to(tl.int64) * stride
    if TURNED:
        acc = tl.zeros([ROWS, TILE], tl.float32)
        other = tl.zeros([ROWS, TILE], tl.float32)
    else:
        acc = tl.zeros([TILE, ROWS], tl.float32)
        other = tl.zeros([TILE, ROWS], tl.float32)
    for depth in tl.range(0, IN, DEPTH, num_stages=STAGES):
        i = depth + tl.arange(0, DEPTH)
        if IN % DEPTH == 0:
            x_TI = tl.load(x_T[:, None] + i[None, :], mask=inside_T[:, None], other=0.0)
        else:
            x_TI = tl.load(x_T[:, None] + i[None, :], mask=inside_T[:, None] & (i < IN)[None, :], other=0.0)
        place = base + row_O[:, None] * IN + i[None, :]
        acc = _multiply(acc, x_TI, place, i, IN, DEPTH, TURNED)
        if GATED:
            other = _multiply(other, x_TI, place + OUT * IN, i, IN, DEPTH, TURNED)
    if WEIGHED:
        weight_T = tl.load(weights_P + pair_T, mask=inside_T, other=0.0)
        weight = weight_T[None, :] if TURNED else weight_T[:, None]
        acc *= weight
        other *= weight
    if bias_XO is not None:
        bias_O = bias_XO + expert * (HALVES * OUT) + row_O
        acc += _spread(tl.load(bias_O).to(tl.float32), TURNED)
        if GATED:
            other += _spread(tl.load(bias_O + OUT).to(tl.float32), TURNED)
    if GATED:
        acc = through_gate(acc, other, KIND)
    to_T = (at_T if GATED else pair_T).to(tl.int64) * OUT
    if TURNED:
        to = out + to_T[None, :] + o_O[:, None]
        tl.store(to, acc.to(out.dtype.element_ty), mask=inside_T[None, :] & (o_O < OUT)[:, None])
    else:
        to = out + to_T[:, None] + o_O[None, :]
        tl.store(to, acc.to(out.dtype.element_ty), mask=inside_T[:, None] & (o_O < OUT)[None, :])


@jit
def _multiply(acc, x_TI, place, i, IN: tl.constexpr, DEPTH: tl.constexpr, TURNED: tl.constexpr):
    if IN % DEPTH == 0:
        weight_OI = tl.load(place)
    else:
        weight_OI = tl.load(place, mask=(i < IN)[None, :], other=0.0)
    if TURNED:
        return tl.dot(weight_OI, tl.trans(x_TI), acc, input_precision="ieee")
    else:
        return tl.dot(x_TI, tl.trans(weight_OI), acc, input_precision="ieee")


@jit
def _spread(value_O, TURNED: tl.constexpr):
    return value_O[:, None] if TURNED else value_O[None, :]


@jit
def _combine(
    parts_PE,
    weights_P,
    out_TE,
    E: tl.constexpr,
    K: tl.constexpr,
    WEIGHED: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T, ceil(E / BLOCK)): the sum of each token's pairs."""
    token = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        pdl.join()
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        part = tl.load(parts_PE + (token * K + k) * E + e, mask=e < E, other=0.0).to(tl.float32)
        if WEIGHED:
            part *= tl.load(weights_P + token * K + k)
        total += part
    tl.store(out_TE + token * E + e, total.to(out_TE.dtype.element_ty), mask=e < E)


def routed(x_TE: Tensor, norm: RmsNorm | None, logits_TX: Tensor, how: Routed) -> Tensor:
    """What `Kernels.experts` does."""
    experts_TK, weights_TK = choose(logits_TX, how)
    if len(x_TE) <= FEW:
        return of_few(x_TE, norm, experts_TK, weights_TK, how)
    assert norm is None
    return of_many(x_TE, experts_TK, weights_TK, how)


def of_few(
    x_TE: Tensor,
    norm: RmsNorm | None,
    experts_TK: Tensor,
    weights_TK: Tensor,
    how: Routed,
    up: Cut | None = None,
    down: Cut | None = None,
) -> Tensor:
    """y_TE, a product for each pair."""
    (num_tokens, top), (_, size, inner) = experts_TK.shape, how.down_XOI.shape
    up = up or cut_for(how.gate_up_XOI.shape, num_tokens, top)
    down = down or cut_for(how.down_XOI.shape, num_tokens, top)
    inner_PM = torch.empty((num_tokens * top, inner), dtype=x_TE.dtype, device=x_TE.device)
    out_TE = torch.empty((num_tokens, size), dtype=x_TE.dtype, device=x_TE.device)
    gain_E, eps = (None, 0.0) if norm is None else norm
    early = pdl.supported(x_TE.device)
    if isinstance(how.gate_up_XOI, StackedPlanes):
        experts_coded.up_of_few(
            x_TE, norm, experts_TK, weights_TK, how.gate_up_XOI, how.gate_up_bias_XO, inner_PM,
            activation=how.activation, weighed=how.weighs_input, cut=up,
        )  # fmt: skip
    else:
        _up_of_one[(triton.cdiv(inner, up.rows), num_tokens * top)](
            x_TE, x_TE.stride(0), gain_E, eps, experts_TK, weights_TK, how.gate_up_XOI, how.gate_up_bias_XO, inner_PM,
            E=size, M=inner, K=top, KIND=how.activation, WEIGHED=how.weighs_input, PDL=early,
            ROWS=up.rows, DEPTH=up.depth, STAGES=up.stages, num_warps=up.warps, launch_pdl=early,
        )  # fmt: skip
    if isinstance(how.down_XOI, StackedPlanes):
        experts_coded.down_of_few(
            inner_PM, experts_TK, weights_TK, how.down_XOI, how.down_bias_XO, out_TE, weighed=not how.weighs_input, cut=down
        )  # fmt: skip
    else:
        _down_of_one[(triton.cdiv(size, down.rows), num_tokens)](
            inner_PM, experts_TK, weights_TK, how.down_XOI, how.down_bias_XO, out_TE,
            E=size, M=inner, K=top, WEIGHED=not how.weighs_input, PDL=early,
            ROWS=down.rows, DEPTH=down.depth, STAGES=down.stages, num_warps=down.warps, launch_pdl=early,
        )  # fmt: skip
    return out_TE


def of_many(
    x_TE: Tensor,
    experts_TK: Tensor,
    weights_TK: Tensor,
    how: Routed,
    up: Cut | None = None,
    down: Cut | None = None,
) -> Tensor:
    """y_TE, by tiles of each expert's pairs."""
    (num_tokens, top), (count, size, inner) = experts_TK.shape, how.down_XOI.shape
    order_P, starts_X1 = deal(experts_TK, count)
    inner_PM = torch.empty((num_tokens * top, inner), dtype=x_TE.dtype, device=x_TE.device)
    parts_PE = torch.empty((num_tokens * top, size), dtype=x_TE.dtype, device=x_TE.device)
    out_TE = torch.empty((num_tokens, size), dtype=x_TE.dtype, device=x_TE.device)
    early = pdl.supported(x_TE.device)
    for x, weight_XOI, bias_XO, out, cut in (
        (x_TE, how.gate_up_XOI, how.gate_up_bias_XO, inner_PM, up),
        (inner_PM, how.down_XOI, how.down_bias_XO, parts_PE, down),
    ):
        cut = cut or cut_for(weight_XOI.shape, num_tokens, top)
        first = out is inner_PM
        outputs = out.shape[1]
        if isinstance(weight_XOI, StackedPlanes):
            experts_coded.grouped(
                x, order_P, starts_X1, weights_TK, weight_XOI, bias_XO, out,
                activation=how.activation if first else None, weighed=first and how.weighs_input, cut=cut,
            )  # fmt: skip
            continue
        assert isinstance(weight_XOI, Tensor), "each by itself is for hosts"
        _grouped[(cut.tiles(count, num_tokens * top) * triton.cdiv(outputs, cut.rows),)](
            x, x.stride(0), order_P, starts_X1, weights_TK, weight_XOI, bias_XO, out, num_tokens * top,
            X=count, IN=weight_XOI.shape[2], OUT=outputs, K=top, KIND=how.activation if first else None,
            WEIGHED=first and how.weighs_input, PDL=early, X_PAD=triton.next_power_of_2(count),
            TILE=cut.tile, ROWS=cut.rows, DEPTH=cut.depth, STAGES=cut.stages, TURNED=cut.turned,
            num_warps=cut.warps, launch_pdl=early,
        )  # fmt: skip
    block = min(1024, triton.next_power_of_2(size))
    _combine[(num_tokens, triton.cdiv(size, block))](
        parts_PE, weights_TK, out_TE, E=size, K=top, WEIGHED=not how.weighs_input, PDL=early, BLOCK=block, num_warps=4,
        launch_pdl=early,
    )  # fmt: skip
    return out_TE
