"""The product of more than a few tokens with quantised weights, which are decoded once for a tile of tokens.

Outputs are the rows of a tile and tokens its columns: decoded weights go from registers to the tensor cores, and only
tokens lie in shared memory.

Suffix legend: T tokens, I inputs, O outputs, B bytes of a row of codes, J columns of a turn, G groups of inputs, S groups of
outputs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.planes import Planes
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.quant_decode import decode
from sapwood.kernels.triton.quant_parts import joined, room, write


class Setting(NamedTuple):
    """How a product is cut: tiles of so many outputs and tokens, `depth` bytes of a row a turn, `stages` of them on their way;
    the inputs of a tile in so many `parts`."""

    rows: int
    tokens: int
    depth: int
    warps: int
    stages: int
    parts: int = 1


@jit
def column_of(byte, PAIR: tl.constexpr, J: tl.constexpr):
    """The column whose code is in a byte, or in the low half of it. That it is a multiple of J the compiler does not see."""
    return tl.multiple_of(byte // PAIR * (2 * PAIR) + byte % PAIR, J) if PAIR else byte


@jit
def of_group(plane_GS, row_O, column, IN: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr):
    """A scale or an offset of each row [O], as it is kept; 0 beyond the last column."""
    if plane_GS is None:
        return 0.0
    else:
        place = plane_GS + column // GROUP * WIDE + row_O // TALL
        return tl.load(place, mask=(row_O >= 0) & (column < IN), other=0.0)


@jit
def both(
    plane_GS, row_O, low,
    IN: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, TALL: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Those of either half."""
    first = of_group(plane_GS, row_O, low, IN, WIDE, GROUP, TALL)
    second = of_group(plane_GS, row_O, low + PAIR, IN, WIDE, GROUP, TALL) if PAIR else first
    return first, second


@jit
def half_of(
    acc, codes, x, table, scale_O, offset_O,
    SCALED: tl.constexpr, OFFSET: tl.constexpr, FORM: tl.constexpr, HIGH: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """acc with the products of one half of a tile of codes."""
    dtype: tl.constexpr = x.dtype
    w = decode(codes, table, dtype, FORM, HIGH, ASM)
    if SCALED:
        w = w * scale_O.to(dtype)[:, None]
    if OFFSET:
        w = w + offset_O.to(dtype)[:, None]
    return tl.dot(w, tl.trans(x), acc, input_precision="ieee")


@jit(do_not_specialize=["T"])
def _product(
    x_TI,
    x_stride,
    order_I,
    codes_OB,
    scale_GS,
    offset_GS,
    row_scale_O,
    table,
    bias_O,
    out_TO,
    parts,
    arrived,
    T,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    FORM: tl.constexpr,
    PAIR: tl.constexpr,
    GROUP: tl.constexpr,
    TALL: tl.constexpr,
    PDL: tl.constexpr,
    ASM: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    J: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Grid (ceil(OUT / ROWS), ceil(T / TOKENS), PARTS)."""
    BYTES: tl.constexpr = IN // 2 if PAIR else IN
    WIDE: tl.constexpr = (OUT + TALL - 1) // TALL
    SCALED: tl.constexpr = scale_GS is not None
    OFFSET: tl.constexpr = offset_GS is not None
    j_J = tl.arange(0, J)
    o_O = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t_T = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row_O = tl.minimum(o_O, OUT - 1)
    codes_OJ = codes_OB + row_O.to(tl.int64)[:, None] * BYTES + j_J[None, :]
    x_TJ = x_TI + tl.minimum(t_T, T - 1).to(tl.int64)[:, None] * x_stride
    if PDL:
        pdl.join()
    acc = tl.zeros([ROWS, TOKENS], tl.float32)
    RUN: tl.constexpr = (BYTES // J + PARTS - 1) // PARTS * J
    first = tl.program_id(2) * RUN
    low = column_of(first, PAIR, J)
    scale, scale_b = both(scale_GS, row_O, low, IN, WIDE, GROUP, TALL, PAIR)
    offset, offset_b = both(offset_GS, row_O, low, IN, WIDE, GROUP, TALL, PAIR)
    for start in tl.range(first, tl.minimum(first + RUN, BYTES), J, num_stages=STAGES):
        codes = tl.load(codes_OJ + start)
        low = column_of(start, PAIR, J)
        for half in tl.static_range(2 if PAIR else 1):
            i_J = low + half * PAIR + j_J
            if order_I is not None:
                i_J = tl.load(order_I + i_J)
            x = tl.load(x_TJ + i_J[None, :])
            if half == 0:
                acc = half_of(acc, codes, x, table, scale, offset, SCALED, OFFSET, FORM, False, ASM)
            else:
                acc = half_of(acc, codes, x, table, scale_b, offset_b, SCALED, OFFSET, FORM, True, ASM)
        # A turn ahead of their use, so that nothing waits for them.
        low = column_of(start + J, PAIR, J)
        scale, scale_b = both(scale_GS, row_O, low, IN, WIDE, GROUP, TALL, PAIR)
        offset, offset_b = both(offset_GS, row_O, low, IN, WIDE, GROUP, TALL, PAIR)
    acc, last = joined(acc, parts, arrived, PARTS)
    if last:
        write(out_TO, acc, row_scale_O, 1.0, bias_O, row_O, o_O, t_T, T, OUT)


def product(x_TI: Tensor, weights: Planes, bias_O: Tensor | None, cut: Setting) -> Tensor:
    """y_TO, the product alone."""
    num_tokens, inputs = x_TI.shape
    outputs, early = weights.num_outputs, pdl.supported(x_TI.device)
    out_TO = torch.empty((num_tokens, outputs), dtype=x_TI.dtype, device=x_TI.device)
    grid = triton.cdiv(outputs, cut.rows), triton.cdiv(num_tokens, cut.tokens), cut.parts
    parts = room(x_TI.device, grid, cut.rows * cut.tokens)
    _product[grid](
        x_TI, x_TI.stride(0), weights.order_I, weights.codes_OB, weights.scale_GS, weights.offset_GS, weights.row_O,
        weights.table, bias_O, out_TO, parts, weights.arrived, num_tokens,
        IN=inputs, OUT=outputs, FORM=weights.form, PAIR=weights.pair, GROUP=weights.group or inputs, TALL=weights.tall,
        PDL=early, ASM=early, ROWS=cut.rows, TOKENS=cut.tokens, J=min(cut.depth, weights.slice), STAGES=cut.stages,
        PARTS=cut.parts, num_warps=cut.warps, launch_pdl=early,
    )  # fmt: skip
    return out_TO
