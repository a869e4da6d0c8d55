"""The kernels between the products as one launch each, with their contracts in `sapwood.kernels.Kernels` and their
twins in `sapwood.kernels.plain`.

All compute in float32 and address rows by a stride, so that a slice of a fused projection needs no copy.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import Kernels
from sapwood.kernels.triton import few, pdl
from sapwood.kernels.triton.jit import jit


@jit
def _embed(ids_T, weight_VE, out_TE, scale, E: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (T, ceil(E / BLOCK))."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < E
    if PDL:
        pdl.join()
    row = tl.load(ids_T + token).to(tl.int64)
    x = tl.load(weight_VE + row * E + i, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(out_TE + token * E + i, x.to(out_TE.dtype.element_ty), mask=inside)


@jit
def _norm(
    x_TE,
    x_stride,
    residual_TE,
    residual_stride,
    weight_E,
    out_TE,
    eps,
    E: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T,). ADD: the sum, rounded as it will be read later, replaces the residual."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < E
    weight = tl.load(weight_E + i, mask=inside, other=0.0)
    if PDL:
        pdl.join()
    x = tl.load(x_TE + token * x_stride + i, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        place = residual_TE + token * residual_stride + i
        kept = (x + tl.load(place, mask=inside, other=0.0).to(tl.float32)).to(residual_TE.dtype.element_ty)
        tl.store(place, kept, mask=inside)
        x = kept.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, axis=0) / E + eps)
    tl.store(out_TE + token * E + i, (x * factor * weight).to(out_TE.dtype.element_ty), mask=inside)


@jit
def _turn(
    x_TND,
    token_stride,
    head_stride,
    weight_ND,
    cos_TF,
    sin_TF,
    eps,
    N: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    NORM: tl.constexpr,
    HEADS: tl.constexpr,
    F_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
):
    """Rotate HEADS heads of one token in place, normed first with NORM. Grid (T, ceil(N / HEADS)).

    A head is [low half | high half | rest]; the rest is not turned, and read only to be normed.
    """
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    f = tl.arange(0, F_PAD)[None, :]
    inside = (n < N) & (f < F)
    place = x_TND + token * token_stride + n * head_stride
    low = tl.load(place + f, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(place + F + f, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        dtype = x_TND.dtype.element_ty
        weight = weight_ND + n * D
        squares = tl.sum(low * low + high * high, axis=1)
        if REST_PAD > 0:
            d = 2 * F + tl.arange(0, REST_PAD)[None, :]
            rest_inside = (n < N) & (d < D)
            rest = tl.load(place + d, mask=rest_inside, other=0.0).to(tl.float32)
            squares += tl.sum(rest * rest, axis=1)
        factor = tl.rsqrt(squares / D + eps)[:, None]
        low = (low * factor * tl.load(weight + f, mask=inside, other=0.0)).to(dtype).to(tl.float32)
        high = (high * factor * tl.load(weight + F + f, mask=inside, other=0.0)).to(dtype).to(tl.float32)
        if REST_PAD > 0:
            rest = rest * factor * tl.load(weight + d, mask=rest_inside, other=0.0)
            tl.store(place + d, rest.to(dtype), mask=rest_inside)
    cos = tl.load(cos_TF + token * F + f, mask=f < F, other=0.0)
    sin = tl.load(sin_TF + token * F + f, mask=f < F, other=0.0)
    tl.store(place + f, (low * cos - high * sin).to(x_TND.dtype.element_ty), mask=inside)
    tl.store(place + F + f, (high * cos + low * sin).to(x_TND.dtype.element_ty), mask=inside)


@jit
def _gate(x_T2M, x_stride, out_TM, M: tl.constexpr, SILU: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (T, ceil(M / BLOCK))."""
    if PDL:
        pdl.join()
    token = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = m < M
    gate = tl.load(x_T2M + token * x_stride + m, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_T2M + token * x_stride + M + m, mask=inside, other=0.0).to(tl.float32)
    # (1 + tanh(u)) / 2 = sigmoid(2 u), so both activations are the gate times a sigmoid.
    slope = gate if SILU else 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    out = gate * up / (1.0 + tl.exp(-slope))
    tl.store(out_TM + token * M + m, out.to(out_TM.dtype.element_ty), mask=inside)


def embed(ids_T: Tensor, weight_VE: Tensor, scale: float) -> Tensor:
    num_tokens, size = len(ids_T), weight_VE.shape[1]
    out_TE = torch.empty((num_tokens, size), dtype=weight_VE.dtype, device=weight_VE.device)
    block, early = min(2048, triton.next_power_of_2(size)), pdl.supported(weight_VE.device)
    _embed[(num_tokens, triton.cdiv(size, block))](
        ids_T, weight_VE, out_TE, scale, E=size, PDL=early, BLOCK=block, num_warps=4, launch_pdl=early
    )
    return out_TE


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    return _launch_norm(x_TE, None, weight_E, eps)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _launch_norm(x_TE, residual_TE, weight_E, eps), residual_TE


def _launch_norm(x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, eps: float) -> Tensor:
    num_tokens, size = x_TE.shape
    out_TE = torch.empty(x_TE.shape, dtype=x_TE.dtype, device=x_TE.device)
    residual_stride = 0 if residual_TE is None else residual_TE.stride(0)
    block, early = triton.next_power_of_2(size), pdl.supported(x_TE.device)
    _norm[(num_tokens,)](
        x_TE, x_TE.stride(0), residual_TE, residual_stride, weight_E, out_TE, eps,
        E=size, ADD=residual_TE is not None, PDL=early, BLOCK=block, num_warps=min(16, max(1, block // 512)),
        launch_pdl=early,
    )  # fmt: skip
    return out_TE


def rope(x_TND: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    return _launch_turn(x_TND, None, 0.0, cos_TF, sin_TF)


def norm_rope(x_TND: Tensor, weight_ND: Tensor, eps: float, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    return _launch_turn(x_TND, weight_ND, eps, cos_TF, sin_TF)


def _launch_turn(x_TND: Tensor, weight_ND: Tensor | None, eps: float, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    num_tokens, num_heads, head_dim = x_TND.shape
    half = cos_TF.shape[-1]
    rest = head_dim - 2 * half
    heads = 8
    _turn[(num_tokens, triton.cdiv(num_heads, heads))](
        x_TND, x_TND.stride(0), x_TND.stride(1), weight_ND, cos_TF, sin_TF, eps,
        N=num_heads, D=head_dim, F=half, NORM=weight_ND is not None, HEADS=heads,
        F_PAD=triton.next_power_of_2(half), REST_PAD=triton.next_power_of_2(rest) if rest else 0, num_warps=4,
    )  # fmt: skip
    return x_TND


def gated(x_T2M: Tensor, activation: str) -> Tensor:
    assert activation in ("silu", "gelu_tanh")
    num_tokens, size = x_T2M.shape[0], x_T2M.shape[1] // 2
    out_TM = torch.empty((num_tokens, size), dtype=x_T2M.dtype, device=x_T2M.device)
    block, early = min(1024, triton.next_power_of_2(size)), pdl.supported(x_T2M.device)
    _gate[(num_tokens, triton.cdiv(size, block))](
        x_T2M, x_T2M.stride(0), out_TM, M=size, SILU=activation == "silu", PDL=early, BLOCK=block, num_warps=4,
        launch_pdl=early,
    )  # fmt: skip
    return out_TM


KERNELS = Kernels(
    embed=embed,
    rms_norm=rms_norm,
    add_rms_norm=add_rms_norm,
    rope=rope,
    norm_rope=norm_rope,
    gated=gated,
    few=few.product,
    few_tokens=few.FEW,
)
