"""The kernels in plain PyTorch: what runs on CPUs, and the twin that fused ones are tested against.

Contracts and the suffix legend are those of `sapwood.kernels.Kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def rope(x_TND: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    half = cos_TF.shape[-1]
    cos_T1F, sin_T1F = cos_TF.unsqueeze(1), sin_TF.unsqueeze(1)
    low, high = x_TND[..., :half], x_TND[..., half : 2 * half]
    turned = [low * cos_T1F - high * sin_T1F, high * cos_T1F + low * sin_T1F]
    if 2 * half < x_TND.shape[-1]:
        turned.append(x_TND[..., 2 * half :])
    return torch.cat(turned, dim=-1).to(x_TND.dtype)


def norm_rope(x_TND: Tensor, weight_ND: Tensor, eps: float, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    x_float = x_TND.float()
    inverse = torch.rsqrt(x_float.square().mean(dim=-1, keepdim=True) + eps)
    return rope((x_float * inverse * weight_ND).to(x_TND.dtype), cos_TF, sin_TF)


def gated(x_T2M: Tensor, activation: str) -> Tensor:
    gate_TM, up_TM = x_T2M.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate_TM) * up_TM
    return F.gelu(gate_TM, approximate="tanh") * up_TM
