"""Activations rounded to eight bits, in the kernel that makes them: behind a norm, a gate, or as they are.

A token is one program's. A scale is for all inputs of a token or for each 128 of them; or it is known before (STATIC).

Suffix legend: T tokens, I inputs, M the power of 2 from I on, G groups of inputs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import Activation, RmsNorm
from sapwood.kernels.planes import BLOCK, Rounding
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.jit import jit


@jit
def _stored(place, x, inside, INT8: tl.constexpr):
    if INT8:
        x = tl.minimum(tl.maximum(x, -128.0), 127.0)
        # To the nearest, even ones of two: what lies beyond the digits of a float is cut off.
        x = (x + 12582912.0) - 12582912.0
        tl.store(place, x.to(tl.int32).to(tl.int8), mask=inside)
    else:
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
        tl.store(place, x.to(tl.float8e4nv), mask=inside)


@jit
def _round(
    x_TI,
    x_stride,
    residual_TI,
    residual_stride,
    gain_I,
    eps,
    known,
    codes_TI,
    scale_GT,
    IN: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    INT8: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
    M: tl.constexpr,
):
    """Grid (T,). With a residual the sum replaces it. The gate lies before what it opens."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, M)
    inside = i < IN
    if gain_I is not None:
        gain = tl.load(gain_I + i, mask=inside, other=0.0)
    if PDL:
        pdl.join()
    x = tl.load(x_TI + token * x_stride + i, mask=inside, other=0.0).to(tl.float32)
    dtype = x_TI.dtype.element_ty
    if GATED:
        up = tl.load(x_TI + token * x_stride + IN + i, mask=inside, other=0.0).to(tl.float32)
        slope = x if SILU else 1.5957691216057308 * (x + 0.044715 * x * x * x)
        x = x * up / (1.0 + tl.exp(-slope))
    if residual_TI is not None:
        place = residual_TI + token * residual_stride + i
        kept = (x + tl.load(place, mask=inside, other=0.0).to(tl.float32)).to(dtype)
        tl.store(place, kept, mask=inside)
        x = kept.to(tl.float32)
    if gain_I is not None:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / IN + eps) * gain
    # As it would be written, so that it does not matter which kernel rounds.
    x = x.to(dtype).to(tl.float32)
    most = 127.0 if INT8 else 448.0
    if known is not None:
        x = x * (1.0 / tl.load(known))
    elif GROUP > 0:
        x_GJ = tl.reshape(x, [M // GROUP, GROUP])
        scale_G = tl.maximum(tl.max(tl.abs(x_GJ), axis=1), 1e-10) / most
        g = tl.arange(0, M // GROUP)
        tl.store(scale_GT + g * tl.num_programs(0) + token, scale_G, mask=g < IN // GROUP)
        x = tl.reshape(x_GJ * (1.0 / scale_G)[:, None], [M])
    else:
        scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-10) / most
        tl.store(scale_GT + token, scale)
        x = x * (1.0 / scale)
    _stored(codes_TI + token * IN + i, x, inside, INT8)


def rounded(
    x_TI: Tensor,
    dtype: torch.dtype,
    inputs: Rounding,
    known: Tensor | None = None,
    norm: RmsNorm | None = None,
    residual_TI: Tensor | None = None,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(codes_TI, scale_GT) of x, or of rms_norm(x + residual), or of the gate of x: codes in `dtype` (float8_e4m3fn or int8),
    one scale a token or a block of inputs; None where the scale of all is `known`, a float32. The sum replaces the residual.
    """
    num_tokens, size = len(x_TI), x_TI.shape[1] // (1 if activation is None else 2)
    codes_TI = torch.empty((num_tokens, size), dtype=dtype, device=x_TI.device)
    group = BLOCK if inputs == "block" else 0
    scale_GT = None
    if inputs != "tensor":
        scale_GT = torch.empty((size // group if group else 1, num_tokens), dtype=torch.float32, device=x_TI.device)
    gain_I, eps = (None, 0.0) if norm is None else norm
    block, early = max(BLOCK, triton.next_power_of_2(size)), pdl.supported(x_TI.device)
    _round[(num_tokens,)](
        x_TI, x_TI.stride(0), residual_TI, 0 if residual_TI is None else residual_TI.stride(0), gain_I, eps,
        known if inputs == "tensor" else None, codes_TI, scale_GT,
        IN=size, GATED=activation is not None, SILU=activation == "silu", INT8=dtype == torch.int8, GROUP=group,
        PDL=early, M=block, num_warps=min(32, max(1, block // 512)), launch_pdl=early,
    )  # fmt: skip
    return codes_TI, scale_GT
