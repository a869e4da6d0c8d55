"""The kernels in plain PyTorch: what runs on CPUs, and the twin that fused ones are tested against.

Contracts and the suffix legend are those of `sapwood.kernels.Kernels`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sapwood.kernels import Activation, LayerNorm, NormRope

MOST_GATED, GATE_SLOPE = 7.0, 1.702
"""Of `swiglu_clamped`: what is larger is cut off before it is multiplied, and how steep the gate's sigmoid is."""


def embed(ids_T: Tensor, weight_VE: Tensor, scale: float) -> Tensor:
    x_TE = F.embedding(ids_T, weight_VE)
    return x_TE if scale == 1.0 else x_TE * scale


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    if x_TE.dtype == torch.float32:
        return F.rms_norm(x_TE, weight_E.shape, weight_E, eps)
    return F.rms_norm(x_TE.float(), weight_E.shape, weight_E, eps).to(x_TE.dtype)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    residual_TE += x_TE
    return rms_norm(residual_TE, weight_E, eps), residual_TE


def layer_norm(x_TE: Tensor, residual_TE: Tensor | None, norm: LayerNorm) -> tuple[Tensor, Tensor]:
    if residual_TE is not None:
        residual_TE += x_TE
        x_TE = residual_TE
    weight_E, eps, bias_E = norm
    return F.layer_norm(x_TE.float(), weight_E.shape, weight_E, bias_E, eps).to(x_TE.dtype), x_TE


def rope(x_TND: Tensor, cos_TF: Tensor, sin_TF: Tensor, *, interleaved: bool = False) -> Tensor:
    """Dimensions turned by their angles."""
    half = cos_TF.shape[-1]
    cos_T1F, sin_T1F = cos_TF.unsqueeze(1), sin_TF.unsqueeze(1)
    turned_TND = x_TND.float().clone()
    inside_TND = turned_TND[..., : 2 * half]
    low, high = (inside_TND[..., ::2], inside_TND[..., 1::2]) if interleaved else inside_TND.chunk(2, dim=-1)
    new_low, new_high = low * cos_T1F - high * sin_T1F, high * cos_T1F + low * sin_T1F
    low.copy_(new_low)
    high.copy_(new_high)
    return turned_TND.to(x_TND.dtype)


def norm_heads(x_TND: Tensor, weight_ND: Tensor, eps: float, *, center: bool = False) -> Tensor:
    """Each head normed by its row of the weight."""
    x_float = x_TND.float()
    if center:
        x_float = x_float - x_float.mean(dim=-1, keepdim=True)
    inverse = torch.rsqrt(x_float.square().mean(dim=-1, keepdim=True) + eps)
    return (x_float * inverse * weight_ND).to(x_TND.dtype)


def placed(x_TND: Tensor, how: NormRope) -> Tensor:
    """Queries and keys with their positions."""
    if how.norm_ND is not None and not how.late:
        x_TND = norm_heads(x_TND, how.norm_ND, how.eps, center=how.center)
    x_TND = rope(x_TND, how.cos_TF, how.sin_TF, interleaved=how.interleaved)
    if how.norm_ND is not None and how.late:
        x_TND = norm_heads(x_TND, how.norm_ND, how.eps, center=how.center)
    return x_TND


def gated(x_T2M: Tensor, activation: Activation) -> Tensor:
    gate_TM, up_TM = x_T2M.chunk(2, dim=-1)
    if activation == "swiglu_clamped":
        gate_TM, up_TM = gate_TM.clamp(max=MOST_GATED), up_TM.clamp(-MOST_GATED, MOST_GATED)
        return gate_TM * (GATE_SLOPE * gate_TM).sigmoid() * (up_TM + 1)
    return activated(gate_TM, activation) * up_TM


def activated(x_TM: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "silu":
            return F.silu(x_TM)
        case "gelu" | "gelu_tanh":
            return F.gelu(x_TM, approximate="tanh" if activation == "gelu_tanh" else "none")
        case "relu":
            return F.relu(x_TM)
        case "relu2":
            return F.relu(x_TM).square()
        case "swiglu_clamped":
            raise AssertionError("a gate's, beside which there is something")
