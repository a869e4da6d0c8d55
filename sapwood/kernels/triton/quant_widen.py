"""Quantised weights as plain ones, for products of so many tokens that the library's is the fastest.

Suffix legend: I inputs, O outputs, B bytes of a row of codes.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.planes import Planes
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.quant_decode import decode


@jit
def _widen(
    codes_OB,
    scale_GS,
    offset_GS,
    row_scale_O,
    table,
    order_I,
    out_OI,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    FORM: tl.constexpr,
    PAIR: tl.constexpr,
    GROUP: tl.constexpr,
    TALL: tl.constexpr,
    PDL: tl.constexpr,
    ASM: tl.constexpr,
    ROWS: tl.constexpr,
    J: tl.constexpr,
):
    """Grid (ceil(OUT / ROWS), bytes of a row / J): columns are written to where they belong."""
    BYTES: tl.constexpr = IN // 2 if PAIR else IN
    WIDE: tl.constexpr = (OUT + TALL - 1) // TALL
    o_O = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (o_O < OUT)[:, None]
    byte_J = tl.program_id(1) * J + tl.arange(0, J)
    codes = tl.load(codes_OB + o_O.to(tl.int64)[:, None] * BYTES + byte_J[None, :], mask=inside, other=0)
    if row_scale_O is not None:
        row = tl.load(row_scale_O + o_O, mask=o_O < OUT, other=0.0)[:, None]
    if PDL:
        pdl.join()
    first = tl.program_id(1) * J
    low = tl.multiple_of(first // PAIR * (2 * PAIR) + first % PAIR if PAIR else first, J)
    for half in tl.static_range(2 if PAIR else 1):
        column = low + half * PAIR
        value = decode(codes, table, out_OI.dtype.element_ty, FORM, half == 1, ASM).to(tl.float32)
        place_O = column // GROUP * WIDE + o_O // TALL
        if scale_GS is not None:
            value = value * tl.load(scale_GS + place_O, mask=o_O < OUT, other=0.0).to(tl.float32)[:, None]
        if offset_GS is not None:
            value = value + tl.load(offset_GS + place_O, mask=o_O < OUT, other=0.0).to(tl.float32)[:, None]
        if row_scale_O is not None:
            value = value * row
        i_J = column + tl.arange(0, J)
        if order_I is not None:
            i_J = tl.load(order_I + i_J)
        tl.store(out_OI + o_O.to(tl.int64)[:, None] * IN + i_J[None, :], value.to(out_OI.dtype.element_ty), mask=inside)


def widened(weights: Planes, dtype: torch.dtype) -> Tensor:
    """weight_OI in `dtype`."""
    out_OI = torch.empty((weights.num_outputs, weights.num_inputs), dtype=dtype, device=weights.codes_OB.device)
    early, rows, run = pdl.supported(out_OI.device), 32, weights.slice
    grid = (triton.cdiv(weights.num_outputs, rows), weights.codes_OB.shape[1] // run)
    _widen[grid](
        weights.codes_OB, weights.scale_GS, weights.offset_GS, weights.row_O, weights.table, weights.order_I, out_OI,
        IN=weights.num_inputs, OUT=weights.num_outputs, FORM=weights.form, PAIR=weights.pair,
        GROUP=weights.group or weights.num_inputs, TALL=weights.tall, PDL=early, ASM=early, ROWS=rows, J=run,
        num_warps=4, launch_pdl=early,
    )  # fmt: skip
    return out_OI
