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

from sapwood.kernels import Activation, Kernels, LayerNorm
from sapwood.kernels.triton import adapters, experts, experts_cut, few, pdl
from sapwood.kernels.triton.gate import activate, through_gate
from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.quantised import QUANTISED


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
    bias_E,
    out_TE,
    eps,
    E: tl.constexpr,
    ADD: tl.constexpr,
    CENTER: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T,). ADD: the sum, rounded as it will be read later, replaces the residual. CENTER: layer norm."""
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
    if CENTER:
        x = tl.where(inside, x - tl.sum(x, axis=0) / E, 0.0)
    factor = tl.rsqrt(tl.sum(x * x, axis=0) / E + eps)
    out = x * factor * weight
    if bias_E is not None:
        out += tl.load(bias_E + i, mask=inside, other=0.0)
    tl.store(out_TE + token * E + i, out.to(out_TE.dtype.element_ty), mask=inside)


@jit
def _gate(
    x_TX,
    x_stride,
    out_TM,
    M: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T, ceil(M / BLOCK)). With GATED the activation of the first M of each row times the others."""
    if PDL:
        pdl.join()
    token = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = m < M
    gate = tl.load(x_TX + token * x_stride + m, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        out = through_gate(gate, tl.load(x_TX + token * x_stride + M + m, mask=inside, other=0.0).to(tl.float32), KIND)
    else:
        out = activate(gate, KIND)
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
    return _launch_norm(x_TE, None, LayerNorm(weight_E, eps), center=False)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _launch_norm(x_TE, residual_TE, LayerNorm(weight_E, eps), center=False), residual_TE


def layer_norm(x_TE: Tensor, residual_TE: Tensor | None, norm: LayerNorm) -> tuple[Tensor, Tensor]:
    return _launch_norm(x_TE, residual_TE, norm, center=True), x_TE if residual_TE is None else residual_TE


def _launch_norm(x_TE: Tensor, residual_TE: Tensor | None, norm: LayerNorm, *, center: bool) -> Tensor:
    num_tokens, size = x_TE.shape
    out_TE = torch.empty(x_TE.shape, dtype=x_TE.dtype, device=x_TE.device)
    residual_stride = 0 if residual_TE is None else residual_TE.stride(0)
    block, early = triton.next_power_of_2(size), pdl.supported(x_TE.device)
    _norm[(num_tokens,)](
        x_TE, x_TE.stride(0), residual_TE, residual_stride, norm.weight_E, norm.bias_E, out_TE, norm.eps,
        E=size, ADD=residual_TE is not None, CENTER=center, PDL=early, BLOCK=block,
        num_warps=min(16, max(1, block // 512)), launch_pdl=early,
    )  # fmt: skip
    return out_TE


def gated(x_T2M: Tensor, activation: Activation) -> Tensor:
    return _launch_gate(x_T2M, x_T2M.shape[1] // 2, activation, gated=True)


def activated(x_TM: Tensor, activation: Activation) -> Tensor:
    return _launch_gate(x_TM, x_TM.shape[1], activation, gated=False)


def _launch_gate(x_TX: Tensor, size: int, activation: Activation, *, gated: bool) -> Tensor:
    out_TM = torch.empty((len(x_TX), size), dtype=x_TX.dtype, device=x_TX.device)
    block, early = min(1024, triton.next_power_of_2(size)), pdl.supported(x_TX.device)
    _gate[(len(x_TX), triton.cdiv(size, block))](
        x_TX, x_TX.stride(0), out_TM, M=size, KIND=activation, GATED=gated, PDL=early, BLOCK=block, num_warps=4,
        launch_pdl=early,
    )  # fmt: skip
    return out_TM


KERNELS = Kernels(
    embed=embed,
    rms_norm=rms_norm,
    add_rms_norm=add_rms_norm,
    layer_norm=layer_norm,
    gated=gated,
    activated=activated,
    few=few.product,
    few_tokens=few.FEW,
    quantised=QUANTISED,
    routed=experts.routed,
    routed_few=experts_cut.FEW,
    adapt=adapters.add,
)
