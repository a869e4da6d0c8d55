"""The product of few tokens with quantised weights, which is bound by how fast their bytes can be read.

As in `sapwood.kernels.triton.few` an RMS norm before the product, and a bias and a gate behind it, are part of the launch.
Weights are decoded in registers. A program's tile is several slices of columns, each of at most a group: slices are a
product each, worked off by different warps, so that scales multiply sums instead of weights, and are added up in the end.
Offsets multiply the sums of the inputs, which are products with ones.

Suffix legend: T tokens, X tokens of a product, a power of 2, I inputs, O outputs (of a gated product: half of the weight's rows),
S slices of a tile, J columns of a slice, G groups of inputs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import Activation, RmsNorm
from sapwood.kernels.planes import Planes
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.few import chunks, prefetch
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.quant_decode import decode, ones


class Setting(NamedTuple):
    """How a product is cut: programs of so many rows and warps, whose tiles are two or more `slices` of `depth` bytes of a row,
    or more of fewer where groups are smaller; `stages` of them on their way. `dot`: by tensor cores, else by multiply-adds,
    for one token."""

    dot: bool
    rows: int
    slices: int
    depth: int
    warps: int
    stages: int


@jit
def _load(place, mask, RAGGED: tl.constexpr):
    return tl.load(place, mask=mask, other=0.0) if RAGGED else tl.load(place)


@jit
def _columns(byte_S, PAIR: tl.constexpr, J: tl.constexpr):
    """The first column of each slice, of the low half where there are two. That it is a multiple of J the compiler does not
    see."""
    return tl.multiple_of(byte_S // PAIR * (2 * PAIR) + byte_S % PAIR, J) if PAIR else byte_S


@jit
def _of_groups(
    plane_GS, row_O, column_S, IN: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr
):
    """A scale or an offset of each slice and row [S, O], as it is kept; 0 beyond the last column."""
    if plane_GS is None:
        return 0.0
    else:
        place = plane_GS + (column_S // GROUP)[:, None] * WIDE + (row_O // TALL)[None, :]
        return tl.load(place, mask=(column_S < IN)[:, None], other=0.0)


@jit
def _both(
    plane_GS, row_O, column_S,
    IN: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Those of either half."""
    low = _of_groups(plane_GS, row_O, column_S, IN, WIDE, GROUP, TALL)
    high = _of_groups(plane_GS, row_O, column_S + PAIR, IN, WIDE, GROUP, TALL) if PAIR else low
    return low, high


@jit
def _input(x_TI, x_stride, residual_TI, residual_stride, t_X, i_SJ, inside_SXJ):
    """x, or x + residual rounded to their dtype [S, X, J]."""
    x = tl.load(x_TI + t_X[None, :, None] * x_stride + i_SJ[:, None, :], mask=inside_SXJ, other=0.0)
    if residual_TI is not None:
        place = residual_TI + t_X[None, :, None] * residual_stride + i_SJ[:, None, :]
        x = (x.to(tl.float32) + tl.load(place, mask=inside_SXJ, other=0.0).to(tl.float32)).to(x.dtype)
    return x


@jit
def _multiplied(
    acc, w_SOJ, x_SXJ, sum_SOX, scale_SO, offset_SO, SCALED: tl.constexpr, OFFSET: tl.constexpr, DOT: tl.constexpr
):
    """acc with the products of one half of a tile: [S, O, X] with DOT, else [S, O, J]."""
    if DOT:
        if SCALED:
            acc += _dot(w_SOJ, x_SXJ, tl.zeros_like(acc)) * scale_SO.to(tl.float32)[:, :, None]
        else:
            acc = _dot(w_SOJ, x_SXJ, acc)
        if OFFSET:
            acc += sum_SOX * offset_SO.to(tl.float32)[:, :, None]
    else:
        if SCALED:
            w_SOJ = w_SOJ * scale_SO.to(w_SOJ.dtype)[:, :, None]
        if OFFSET:
            w_SOJ = w_SOJ + offset_SO.to(w_SOJ.dtype)[:, :, None]
        acc += w_SOJ.to(tl.float32) * x_SXJ.to(tl.float32)
    return acc


@jit
def _dot(w_SOJ, x_SXJ, acc_SOX):
    return tl.dot(w_SOJ, tl.permute(x_SXJ, (0, 2, 1)), acc_SOX, input_precision="ieee")


@jit(do_not_specialize=["T"])
def _product(
    x_TI,
    x_stride,
    residual_TI,
    residual_stride,
    gain_I,
    eps,
    order_I,
    codes_OB,
    scale_GS,
    offset_GS,
    row_scale_O,
    table,
    bias_O,
    out_TO,
    sum_TI,
    T,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    FORM: tl.constexpr,
    PAIR: tl.constexpr,
    GROUP: tl.constexpr,
    TALL: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
    ASM: tl.constexpr,
    X: tl.constexpr,
    ROWS: tl.constexpr,
    S: tl.constexpr,
    J: tl.constexpr,
    STAGES: tl.constexpr,
    SHARE: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Grid (ceil(OUT / ROWS),)."""
    BYTES: tl.constexpr = IN // 2 if PAIR else IN
    RAGGED: tl.constexpr = BYTES % (S * J) != 0
    WIDE: tl.constexpr = ((OUT * 2 if GATED else OUT) + TALL - 1) // TALL
    SCALED: tl.constexpr = scale_GS is not None
    OFFSET: tl.constexpr = offset_GS is not None
    HALVES: tl.constexpr = 2 if PAIR else 1
    dtype: tl.constexpr = x_TI.dtype.element_ty
    program = tl.program_id(0)
    t_X = tl.arange(0, X)
    j_J = tl.arange(0, J)
    s_S = tl.arange(0, S)
    o_O = program * ROWS + tl.arange(0, ROWS)
    row_O = tl.minimum(o_O, OUT - 1)
    first_SOJ = codes_OB + row_O.to(tl.int64)[None, :, None] * BYTES + (s_S[:, None] * J + j_J[None, :])[:, None, :]
    if PDL:
        if CHUNKS:
            prefetch(codes_OB, program, BYTES, OUT, ROWS, CHUNKS)
            if GATED:
                prefetch(codes_OB + OUT * BYTES, program, BYTES, OUT, ROWS, CHUNKS)
        pdl.join()

    acc = tl.zeros([S, ROWS, X if DOT else J], tl.float32)
    other = acc
    squares_SXJ = tl.zeros([S, X, J], tl.float32)
    up_O = row_O + OUT
    column_S = _columns(s_S * J, PAIR, J)
    scale, scale_b = _both(scale_GS, row_O, column_S, IN, WIDE, GROUP, TALL, PAIR)
    offset, offset_b = _both(offset_GS, row_O, column_S, IN, WIDE, GROUP, TALL, PAIR)
    if GATED:
        up_scale, up_scale_b = _both(scale_GS, up_O, column_S, IN, WIDE, GROUP, TALL, PAIR)
        up_offset, up_offset_b = _both(offset_GS, up_O, column_S, IN, WIDE, GROUP, TALL, PAIR)
    for start in tl.range(0, BYTES, S * J, num_stages=STAGES):
        byte_S = start + s_S * J
        inside_S = byte_S < BYTES
        w = _load(first_SOJ + start, inside_S[:, None, None], RAGGED)
        if GATED:
            v = _load(first_SOJ + start + OUT * BYTES, inside_S[:, None, None], RAGGED)
        low_S = _columns(byte_S, PAIR, J)
        for half in tl.static_range(HALVES):
            i_SJ = (low_S + half * PAIR)[:, None] + j_J[None, :]
            if order_I is not None:
                i_SJ = tl.load(order_I + i_SJ, mask=inside_S[:, None], other=0)
            x = _input(
                x_TI, x_stride, residual_TI, residual_stride, t_X, i_SJ,
                (t_X < T)[None, :, None] & inside_S[:, None, None],
            )  # fmt: skip
            if gain_I is not None:
                h = x.to(tl.float32)
                squares_SXJ += h * h
                x = (h * _load(gain_I + i_SJ, inside_S[:, None], RAGGED)[:, None, :]).to(dtype)
            sums = 0.0
            if OFFSET and DOT:  # sums of x in each row, where products have theirs
                sums = _dot(ones(w, dtype, ASM), x, tl.zeros([S, ROWS, X], tl.float32))
            number = decode(w, table, dtype, FORM, half == 1, ASM)
            if half == 0:
                acc = _multiplied(acc, number, x, sums, scale, offset, SCALED, OFFSET, DOT)
            else:
                acc = _multiplied(acc, number, x, sums, scale_b, offset_b, SCALED, OFFSET, DOT)
            if GATED:
                number = decode(v, table, dtype, FORM, half == 1, ASM)
                if half == 0:
                    other = _multiplied(other, number, x, sums, up_scale, up_offset, SCALED, OFFSET, DOT)
                else:
                    other = _multiplied(other, number, x, sums, up_scale_b, up_offset_b, SCALED, OFFSET, DOT)
        # A turn ahead of their use, so that nothing waits for them.
        next_S = _columns(byte_S + S * J, PAIR, J)
        scale, scale_b = _both(scale_GS, row_O, next_S, IN, WIDE, GROUP, TALL, PAIR)
        offset, offset_b = _both(offset_GS, row_O, next_S, IN, WIDE, GROUP, TALL, PAIR)
        if GATED:
            up_scale, up_scale_b = _both(scale_GS, up_O, next_S, IN, WIDE, GROUP, TALL, PAIR)
            up_offset, up_offset_b = _both(offset_GS, up_O, next_S, IN, WIDE, GROUP, TALL, PAIR)

    acc, other = _summed(acc, DOT), _summed(other, DOT)
    if gain_I is not None:
        factor_X = tl.rsqrt(tl.sum(tl.sum(squares_SXJ, axis=2), axis=0) / IN + eps)
        acc = acc * factor_X[None, :]
        other = other * factor_X[None, :]
    if row_scale_O is not None:
        acc = acc * tl.load(row_scale_O + row_O)[:, None]
        if GATED:
            other = other * tl.load(row_scale_O + OUT + row_O)[:, None]
    if bias_O is not None:
        acc += tl.load(bias_O + row_O).to(tl.float32)[:, None]
        if GATED:
            other += tl.load(bias_O + OUT + row_O).to(tl.float32)[:, None]
    if GATED:
        # (1 + tanh(u)) / 2 = sigmoid(2 u), so both activations are the gate times a sigmoid.
        slope = acc if SILU else 1.5957691216057308 * (acc + 0.044715 * acc * acc * acc)
        acc = acc * other / (1.0 + tl.exp(-slope))
    place = out_TO + t_X[None, :].to(tl.int64) * OUT + o_O[:, None]
    tl.store(place, acc.to(dtype), mask=(t_X[None, :] < T) & (o_O[:, None] < OUT))

    if residual_TI is not None:
        # The sum, a share of the columns from each program.
        i_SJ = (program * SHARE + tl.arange(0, SHARE))[None, :]
        inside = (t_X < T)[None, :, None] & (i_SJ < IN)[:, None, :]
        total = _input(x_TI, x_stride, residual_TI, residual_stride, t_X, i_SJ, inside)
        tl.store(sum_TI + t_X[None, :, None] * IN + i_SJ[:, None, :], total, mask=inside)


@jit
def _summed(acc, DOT: tl.constexpr):
    """[O, X]: slices added up."""
    if DOT:
        return tl.sum(acc, axis=0)
    else:
        return tl.sum(tl.sum(acc, axis=2), axis=0)[:, None]


def product(
    x_TI: Tensor,
    weights: Planes,
    bias_O: Tensor | None,
    norm: RmsNorm | None,
    residual_TI: Tensor | None,
    activation: Activation | None,
    cut: Setting,
) -> tuple[Tensor, Tensor]:
    """`Kernels.linear` of quantised weights in one launch, for at most a few tokens."""
    num_tokens, inputs = x_TI.shape
    assert inputs == weights.num_inputs
    assert cut.dot or num_tokens <= 1
    rows = weights.num_outputs
    outputs = rows if activation is None else rows // 2
    early = pdl.supported(x_TI.device)
    out_TO = torch.empty((num_tokens, outputs), dtype=x_TI.dtype, device=x_TI.device)
    sum_TI = x_TI if residual_TI is None else torch.empty_like(x_TI, memory_format=torch.contiguous_format)
    gain_I, eps = (None, 0.0) if norm is None else norm
    num_programs, run = triton.cdiv(outputs, cut.rows), min(cut.depth, weights.slice)
    _product[(num_programs,)](
        x_TI, x_TI.stride(0), residual_TI, 0 if residual_TI is None else residual_TI.stride(0), gain_I, eps,
        weights.order_I, weights.codes_OB, weights.scale_GS, weights.offset_GS, weights.row_O, weights.table, bias_O,
        out_TO, sum_TI, num_tokens,
        IN=inputs, OUT=outputs, GATED=activation is not None, SILU=activation == "silu", FORM=weights.form,
        PAIR=weights.pair, GROUP=weights.group or inputs, TALL=weights.tall, DOT=cut.dot, PDL=early,
        ASM=early, X=max(8, triton.next_power_of_2(num_tokens)) if cut.dot else 1, ROWS=cut.rows,
        S=cut.slices * cut.depth // run, J=run, STAGES=cut.stages,
        SHARE=triton.next_power_of_2(triton.cdiv(inputs, num_programs)), CHUNKS=chunks(cut.rows, weights.codes_OB.shape[1]),
        num_warps=cut.warps, launch_pdl=early,
    )  # fmt: skip
    return out_TO, sum_TI
