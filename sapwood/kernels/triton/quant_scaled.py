"""The product of activations and weights of eight bits each, with their scales.

Outputs are the rows of a tile and tokens its columns, so that few tokens waste nothing.

Suffix legend: T tokens, I inputs, O outputs, K inputs of a turn, G groups of inputs, S groups of outputs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.quant_parts import joined, room, write


class Setting(NamedTuple):
    """How a product is cut: tiles of so many outputs and tokens, `depth` inputs a turn, `stages` of them on their way; the inputs
    of a tile in so many `parts`."""

    rows: int
    tokens: int
    depth: int
    warps: int
    stages: int
    parts: int = 1


@jit(do_not_specialize=["T"])
def _scaled(
    x_TI,
    x_scale_GT,
    weight_OI,
    scale_GS,
    row_scale_O,
    bias_O,
    out_TO,
    parts,
    arrived,
    T,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    GROUP: tl.constexpr,
    TALL: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    BAND: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Grid (tiles of outputs x tiles of tokens, 1, PARTS), in bands of BAND tiles of outputs, whose weights stay in the L2 cache."""
    tiles_O: tl.constexpr = (OUT + ROWS - 1) // ROWS
    tiles_T = (T + TOKENS - 1) // TOKENS
    program = tl.program_id(0)
    band = program // (BAND * tiles_T)
    width = tl.minimum(tiles_O - band * BAND, BAND)
    within = program % (BAND * tiles_T)
    first = (band * BAND + within % width) * ROWS
    o_O = first + tl.arange(0, ROWS)
    t_T = within // width * TOKENS + tl.arange(0, TOKENS)
    k_K = tl.arange(0, K)
    row_O = tl.minimum(o_O, OUT - 1)
    token_T = tl.minimum(t_T, T - 1)
    weight = weight_OI + row_O.to(tl.int64)[:, None] * IN + k_K[None, :]
    x = x_TI + token_T.to(tl.int64)[:, None] * IN + k_K[None, :]
    if PDL:
        pdl.join()
    INTEGER: tl.constexpr = x_TI.dtype.element_ty == tl.int8
    acc = tl.zeros([ROWS, TOKENS], tl.int32 if INTEGER and GROUP == 0 else tl.float32)
    RUN: tl.constexpr = ((IN + K - 1) // K + PARTS - 1) // PARTS * K
    begin = tl.program_id(2) * RUN
    for start in tl.range(begin, tl.minimum(begin + RUN, IN), K, num_stages=STAGES):
        if IN % K == 0:
            w, a = tl.load(weight + start), tl.load(x + start)
        else:
            inside = (start + k_K < IN)[None, :]
            w, a = tl.load(weight + start, mask=inside, other=0.0), tl.load(x + start, mask=inside, other=0.0)
        if GROUP > 0:
            group = start // GROUP
            x_scale_T = tl.load(x_scale_GT + group * T + token_T)
            scale = tl.load(scale_GS + group * ((OUT + TALL - 1) // TALL) + tl.minimum(first, OUT - 1) // TALL)
            acc += tl.dot(w, tl.trans(a)).to(tl.float32) * (scale * x_scale_T)[None, :]
        elif INTEGER:
            acc = tl.dot(w, tl.trans(a), acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(w, tl.trans(a), acc)
    out, last = joined(acc.to(tl.float32), parts, arrived, PARTS)
    if last:
        factor_T = 1.0
        if GROUP == 0 and x_scale_GT is not None:
            factor_T = tl.load(x_scale_GT + token_T)[None, :]
        write(out_TO, out, row_scale_O, factor_T, bias_O, row_O, o_O, t_T, T, OUT)


def product(
    x_TI: Tensor,
    x_scale_GT: Tensor | None,
    weight_OI: Tensor,
    scale_GS: Tensor | None,
    row_O: Tensor | None,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    cut: Setting,
    arrived: Tensor | None = None,
) -> Tensor:
    """y_TO in `dtype`. x and weight are int8 or float8_e4m3fn. x has a scale a token, or one for each 128 inputs where the weight
    has one, scale_GS, for 128 x 128 (then a tile's rows share one); row_O are scales of outputs, into which a scale of all inputs may be multiplied.
    `arrived` is as in `Planes`, where inputs are cut into parts."""
    num_tokens, inputs = x_TI.shape
    assert scale_GS is None or (128 % cut.rows == 0 and 128 % cut.depth == 0)
    outputs, early = len(weight_OI), pdl.supported(x_TI.device)
    out_TO = torch.empty((num_tokens, outputs), dtype=dtype, device=x_TI.device)
    grid = triton.cdiv(outputs, cut.rows) * triton.cdiv(num_tokens, cut.tokens), 1, cut.parts
    _scaled[grid](
        x_TI, x_scale_GT, weight_OI, scale_GS, row_O, bias_O, out_TO,
        room(x_TI.device, grid, cut.rows * cut.tokens), arrived, num_tokens,
        IN=inputs, OUT=outputs, GROUP=0 if scale_GS is None else 128, TALL=128, PDL=early,
        ROWS=cut.rows, TOKENS=cut.tokens, K=cut.depth, STAGES=cut.stages, BAND=16, PARTS=cut.parts,
        num_warps=cut.warps, launch_pdl=early,
    )  # fmt: skip
    return out_TO
