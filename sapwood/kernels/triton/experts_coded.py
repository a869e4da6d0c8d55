"""The products of experts with quantised weights, which are decoded in registers; cut and dealt as those with plain ones are.

A turn of a program is a run of bytes of some rows, of at most a group: a scale and an offset of each row hold for either half.

Suffix legend: T tokens, X experts, K experts of a token, P = T K pairs in the order of tokens, I inputs and O outputs of a
product, B bytes of a row of codes, J columns of a turn, G groups of inputs, S groups of outputs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import RmsNorm
from sapwood.kernels.planes import StackedPlanes
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.choice import tile_of
from sapwood.kernels.triton.experts_cut import Cut
from sapwood.kernels.triton.gate import through_gate
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.quant_decode import decode
from sapwood.kernels.triton.quant_many import both, column_of, half_of


@jit
def _numbers(
    codes, table, scale_O, offset_O, dtype: tl.constexpr, FORM: tl.constexpr, HIGH: tl.constexpr, ASM: tl.constexpr
):
    """float32 [O, J] of one half of a tile of codes; no scale is 1.0, no offset 0.0."""
    w_OJ = decode(codes, table, dtype, FORM, HIGH, ASM).to(tl.float32)
    return w_OJ * scale_O.to(tl.float32)[:, None] + offset_O.to(tl.float32)[:, None]


@jit
def _scales(
    plane_XGS, expert, row_O, low, otherwise: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """What each row has in the groups of either half: of scales or of offsets, or `otherwise` where there are none."""
    WIDE: tl.constexpr = (OUT + TALL - 1) // TALL
    if plane_XGS is None:
        none_O = tl.full(row_O.shape, otherwise, tl.float32)
        return none_O, none_O
    else:
        of_expert = plane_XGS + expert * ((IN + GROUP - 1) // GROUP * WIDE)
        return both(of_expert, row_O, low, IN, WIDE, GROUP, TALL, PAIR)


@jit
def _of_rows(plane_XO, expert, row_O, OUT: tl.constexpr):
    """A scale of each row."""
    if plane_XO is None:
        return tl.full(row_O.shape, 1.0, tl.float32)
    else:
        return tl.load(plane_XO + expert * OUT + row_O)


@jit
def _up_of_one(
    x_TI, stride, gain_I, eps, experts_P, weights_P,
    order_XI, codes_XOB, scale_XGS, offset_XGS, row_scale_XO, tables_X, bias_XO, inner_PM,
    IN: tl.constexpr, M: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, WEIGHED: tl.constexpr,
    FORM: tl.constexpr, PAIR: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr,
    PDL: tl.constexpr, ASM: tl.constexpr, ROWS: tl.constexpr, J: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(M / ROWS), P): the gate of a pair's token, normed with `gain_I`."""
    BYTES: tl.constexpr = IN // 2 if PAIR else IN
    OUT: tl.constexpr = 2 * M
    dtype: tl.constexpr = x_TI.dtype.element_ty
    pair = tl.program_id(1)
    o_O = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j_J = tl.arange(0, J)
    if PDL:
        pdl.join()
    expert = tl.load(experts_P + pair).to(tl.int64)
    row_O = tl.minimum(o_O, M - 1)
    codes_OJ = codes_XOB + (expert * OUT + row_O)[:, None] * BYTES + j_J[None, :]
    table = None if tables_X is None else tables_X + expert * 16
    x_I = x_TI + (pair // K) * stride
    gate_OJ = tl.zeros([ROWS, J], tl.float32)
    up_OJ = tl.zeros([ROWS, J], tl.float32)
    squares_J = tl.zeros([J], tl.float32)
    for start in tl.range(0, BYTES, J, num_stages=STAGES):
        low = column_of(start, PAIR, J)
        gate_codes, up_codes = tl.load(codes_OJ + start), tl.load(codes_OJ + start + M * BYTES)
        scale, scale_b = _scales(scale_XGS, expert, row_O, low, 1.0, IN, OUT, GROUP, TALL, PAIR)
        up_scale, up_scale_b = _scales(scale_XGS, expert, row_O + M, low, 1.0, IN, OUT, GROUP, TALL, PAIR)
        offset, offset_b = _scales(offset_XGS, expert, row_O, low, 0.0, IN, OUT, GROUP, TALL, PAIR)
        up_offset, up_offset_b = _scales(offset_XGS, expert, row_O + M, low, 0.0, IN, OUT, GROUP, TALL, PAIR)
        for half in tl.static_range(2 if PAIR else 1):
            i_J = low + half * PAIR + j_J
            if order_XI is not None:
                i_J = tl.load(order_XI + expert * IN + i_J)
            x_J = tl.load(x_I + i_J).to(tl.float32)
            if gain_I is not None:
                squares_J += x_J * x_J
                x_J *= tl.load(gain_I + i_J)
            if half == 0:
                gate_OJ += _numbers(gate_codes, table, scale, offset, dtype, FORM, False, ASM) * x_J[None, :]
                up_OJ += _numbers(up_codes, table, up_scale, up_offset, dtype, FORM, False, ASM) * x_J[None, :]
            else:
                gate_OJ += _numbers(gate_codes, table, scale_b, offset_b, dtype, FORM, True, ASM) * x_J[None, :]
                up_OJ += _numbers(up_codes, table, up_scale_b, up_offset_b, dtype, FORM, True, ASM) * x_J[None, :]
    factor = 1.0
    if gain_I is not None:
        factor = tl.rsqrt(tl.sum(squares_J, axis=0) / IN + eps)
    if WEIGHED:
        factor *= tl.load(weights_P + pair)
    gate_O = tl.sum(gate_OJ, axis=1) * factor * _of_rows(row_scale_XO, expert, row_O, OUT)
    up_O = tl.sum(up_OJ, axis=1) * factor * _of_rows(row_scale_XO, expert, row_O + M, OUT)
    if bias_XO is not None:
        gate_O += tl.load(bias_XO + expert * OUT + row_O).to(tl.float32)
        up_O += tl.load(bias_XO + expert * OUT + M + row_O).to(tl.float32)
    out_O = through_gate(gate_O, up_O, KIND)
    tl.store(inner_PM + pair * M + o_O, out_O.to(inner_PM.dtype.element_ty), mask=o_O < M)


@jit
def _down_of_one(
    inner_PI, experts_P, weights_P,
    order_XI, codes_XOB, scale_XGS, offset_XGS, row_scale_XO, tables_X, bias_XO, out_TO,
    IN: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, WEIGHED: tl.constexpr,
    FORM: tl.constexpr, PAIR: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr,
    PDL: tl.constexpr, ASM: tl.constexpr, ROWS: tl.constexpr, J: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(OUT / ROWS), T): the sum over a token's experts, times their weights if WEIGHED."""
    BYTES: tl.constexpr = IN // 2 if PAIR else IN
    STEPS: tl.constexpr = BYTES // J
    dtype: tl.constexpr = inner_PI.dtype.element_ty
    token = tl.program_id(1)
    o_O = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j_J = tl.arange(0, J)
    if PDL:
        pdl.join()
    row_O = tl.minimum(o_O, OUT - 1)
    acc_OJ = tl.zeros([ROWS, J], tl.float32)
    bias_O = tl.zeros([ROWS], tl.float32)
    for step in tl.range(0, K * STEPS, num_stages=STAGES):
        pair, start = token * K + step // STEPS, step % STEPS * J
        expert = tl.load(experts_P + pair).to(tl.int64)
        weight = tl.load(weights_P + pair) if WEIGHED else 1.0
        low = column_of(start, PAIR, J)
        codes = tl.load(codes_XOB + (expert * OUT + row_O)[:, None] * BYTES + start + j_J[None, :])
        table = None if tables_X is None else tables_X + expert * 16
        scale, scale_b = _scales(scale_XGS, expert, row_O, low, 1.0, IN, OUT, GROUP, TALL, PAIR)
        offset, offset_b = _scales(offset_XGS, expert, row_O, low, 0.0, IN, OUT, GROUP, TALL, PAIR)
        of_rows_O = _of_rows(row_scale_XO, expert, row_O, OUT) * weight
        for half in tl.static_range(2 if PAIR else 1):
            i_J = low + half * PAIR + j_J
            if order_XI is not None:
                i_J = tl.load(order_XI + expert * IN + i_J)
            x_J = tl.load(inner_PI + pair * IN + i_J).to(tl.float32)
            if half == 0:
                w_OJ = _numbers(codes, table, scale, offset, dtype, FORM, False, ASM)
            else:
                w_OJ = _numbers(codes, table, scale_b, offset_b, dtype, FORM, True, ASM)
            acc_OJ += w_OJ * x_J[None, :] * of_rows_O[:, None]
        if bias_XO is not None:
            bias = tl.load(bias_XO + expert * OUT + row_O).to(tl.float32) * weight
            bias_O += tl.where(step % STEPS == 0, bias, 0.0)
    out_O = tl.sum(acc_OJ, axis=1) + bias_O
    tl.store(out_TO + token.to(tl.int64) * OUT + o_O, out_O.to(out_TO.dtype.element_ty), mask=o_O < OUT)


@jit(do_not_specialize=["P"])
def _grouped(
    x, stride, order_P, starts_X1, weights_P,
    order_XI, codes_XOB, scale_XGS, offset_XGS, row_scale_XO, tables_X, bias_XO, out, P,
    X: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, WEIGHED: tl.constexpr,
    FORM: tl.constexpr, PAIR: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr,
    PDL: tl.constexpr, ASM: tl.constexpr, X_PAD: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, J: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (tiles * ceil(OUT / ROWS),): a tile of one expert's pairs, which are its columns, times some of its rows; with a KIND
    of gate the first of two products, without the second, as `experts._grouped` has them."""
    BLOCKS: tl.constexpr = (OUT + ROWS - 1) // ROWS
    GATED: tl.constexpr = KIND is not None
    ALL: tl.constexpr = 2 * OUT if GATED else OUT
    BYTES: tl.constexpr = IN // 2 if PAIR else IN
    SCALED: tl.constexpr = scale_XGS is not None
    OFFSET: tl.constexpr = offset_XGS is not None
    program = tl.program_id(0)
    if PDL:
        pdl.join()
    tile = program // BLOCKS
    number, before = tile_of(starts_X1, tile, P, X, X_PAD, TILE)
    if number >= X:
        return
    expert = number.to(tl.int64)
    first, end = tl.load(starts_X1 + expert) + (tile - before) * TILE, tl.load(starts_X1 + expert + 1)
    j_J = tl.arange(0, J)
    at_T = first + tl.arange(0, TILE)
    inside_T = at_T < end
    pair_T = tl.load(order_P + at_T, mask=inside_T, other=0)
    place_T = tl.where(inside_T, pair_T // K if GATED else at_T, 0)
    x_TJ = x + place_T.to(tl.int64)[:, None] * stride
    o_O = program % BLOCKS * ROWS + tl.arange(0, ROWS)
    row_O = tl.minimum(o_O, OUT - 1)
    codes_OJ = codes_XOB + (expert * ALL + row_O)[:, None] * BYTES + j_J[None, :]
    table = None if tables_X is None else tables_X + expert * 16
    acc = tl.zeros([ROWS, TILE], tl.float32)
    other = tl.zeros([ROWS, TILE], tl.float32)
    for start in tl.range(0, BYTES, J, num_stages=STAGES):
        low = column_of(start, PAIR, J)
        codes = tl.load(codes_OJ + start)
        scale, scale_b = _scales(scale_XGS, expert, row_O, low, 1.0, IN, ALL, GROUP, TALL, PAIR)
        offset, offset_b = _scales(offset_XGS, expert, row_O, low, 0.0, IN, ALL, GROUP, TALL, PAIR)
        if GATED:
            up_codes = tl.load(codes_OJ + start + OUT * BYTES)
            up_scale, up_scale_b = _scales(scale_XGS, expert, row_O + OUT, low, 1.0, IN, ALL, GROUP, TALL, PAIR)
            up_offset, up_offset_b = _scales(offset_XGS, expert, row_O + OUT, low, 0.0, IN, ALL, GROUP, TALL, PAIR)
        for half in tl.static_range(2 if PAIR else 1):
            i_J = low + half * PAIR + j_J
            if order_XI is not None:
                i_J = tl.load(order_XI + expert * IN + i_J)
            x_half = tl.load(x_TJ + i_J[None, :], mask=inside_T[:, None], other=0.0)
            if half == 0:
                acc = half_of(acc, codes, x_half, table, scale, offset, SCALED, OFFSET, FORM, False, ASM)
                if GATED:
                    other = half_of(
                        other, up_codes, x_half, table, up_scale, up_offset, SCALED, OFFSET, FORM, False, ASM
                    )
            else:
                acc = half_of(acc, codes, x_half, table, scale_b, offset_b, SCALED, OFFSET, FORM, True, ASM)
                if GATED:
                    other = half_of(
                        other, up_codes, x_half, table, up_scale_b, up_offset_b, SCALED, OFFSET, FORM, True, ASM
                    )
    weight_T = tl.load(weights_P + pair_T, mask=inside_T, other=0.0) if WEIGHED else tl.full([TILE], 1.0, tl.float32)
    acc *= _of_rows(row_scale_XO, expert, row_O, ALL)[:, None] * weight_T[None, :]
    if bias_XO is not None:
        acc += tl.load(bias_XO + expert * ALL + row_O).to(tl.float32)[:, None]
    if GATED:
        other *= _of_rows(row_scale_XO, expert, row_O + OUT, ALL)[:, None] * weight_T[None, :]
        if bias_XO is not None:
            other += tl.load(bias_XO + expert * ALL + OUT + row_O).to(tl.float32)[:, None]
        acc = through_gate(acc, other, KIND)
    to = out + ((at_T if GATED else pair_T).to(tl.int64) * OUT)[None, :] + o_O[:, None]
    tl.store(to, acc.to(out.dtype.element_ty), mask=inside_T[None, :] & (o_O < OUT)[:, None])


def _held(weights: StackedPlanes, bias_XO: Tensor | None) -> tuple[Tensor | None, ...]:
    """What kernels read, in the order of their arguments."""
    planes = weights.planes
    return planes.order_I, planes.codes_OB, planes.scale_GS, planes.offset_GS, planes.row_O, planes.table, bias_XO


def _laid(weights: StackedPlanes, cut: Cut, early: bool) -> dict[str, Any]:
    """How they lie, and how they are worked off."""
    planes, inputs = weights.planes, weights.shape[2]
    return {
        "IN": inputs, "FORM": planes.form, "PAIR": planes.pair, "GROUP": planes.group or inputs, "TALL": planes.tall,
        "PDL": early, "ASM": early, "ROWS": cut.rows, "J": min(cut.depth, weights.run), "STAGES": cut.stages,
        "num_warps": cut.warps, "launch_pdl": early,
    }  # fmt: skip


def up_of_few(
    x_TI: Tensor, norm: RmsNorm | None, experts_TK: Tensor, weights_TK: Tensor,
    weights: StackedPlanes, bias_XO: Tensor | None, inner_PM: Tensor, *, activation: str, weighed: bool, cut: Cut,
) -> None:  # fmt: skip
    """The first product of each pair, into `inner_PM`."""
    gain_I, eps = (None, 0.0) if norm is None else norm
    _up_of_one[(triton.cdiv(inner_PM.shape[1], cut.rows), len(inner_PM))](
        x_TI, x_TI.stride(0), gain_I, eps, experts_TK, weights_TK, *_held(weights, bias_XO), inner_PM,
        M=inner_PM.shape[1], K=experts_TK.shape[1], KIND=activation, WEIGHED=weighed,
        **_laid(weights, cut, pdl.supported(x_TI.device)),
    )  # fmt: skip


def down_of_few(
    inner_PI: Tensor, experts_TK: Tensor, weights_TK: Tensor, weights: StackedPlanes, bias_XO: Tensor | None,
    out_TO: Tensor, *, weighed: bool, cut: Cut,
) -> None:  # fmt: skip
    """The second, added up for each token into `out_TO`."""
    _down_of_one[(triton.cdiv(out_TO.shape[1], cut.rows), len(out_TO))](
        inner_PI, experts_TK, weights_TK, *_held(weights, bias_XO), out_TO,
        OUT=out_TO.shape[1], K=experts_TK.shape[1], WEIGHED=weighed, **_laid(weights, cut, pdl.supported(inner_PI.device)),
    )  # fmt: skip


def grouped(
    x: Tensor, order_P: Tensor, starts_X1: Tensor, weights_TK: Tensor, weights: StackedPlanes, bias_XO: Tensor | None,
    out: Tensor, *, activation: str | None, weighed: bool, cut: Cut,
) -> None:  # fmt: skip
    """One of the two products, by tiles of each expert's pairs."""
    count, outputs = weights.shape[0], out.shape[1]
    _grouped[(cut.tiles(count, len(order_P)) * triton.cdiv(outputs, cut.rows),)](
        x, x.stride(0), order_P, starts_X1, weights_TK, *_held(weights, bias_XO), out, len(order_P),
        X=count, OUT=outputs, K=weights_TK.shape[1], KIND=activation, WEIGHED=weighed,
        X_PAD=triton.next_power_of_2(count), TILE=cut.tile, **_laid(weights, cut, pdl.supported(x.device)),
    )  # fmt: skip
