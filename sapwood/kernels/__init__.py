"""The elementwise kernels between the matrix products, chosen once per device.

Suffix legend: T tokens, E hidden size, N query and key heads side by side, D head size, F half of the rotated
dimensions of a head, M intermediate size; a leading `...` is any number of axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sapwood.kernels import plain

Activation = Literal["silu", "gelu_tanh"]


class Turn(NamedTuple):
    """How a step's queries and keys are turned: each head normed by its row of `norm_ND`, if there is one, then rotated.

    Float32, contiguous; the arguments of `Kernels.norm_rope`.
    """

    cos_TF: Tensor
    sin_TF: Tensor
    norm_ND: Tensor | None = None
    eps: float = 0.0


@dataclass(frozen=True)
class Kernels:
    """One function per job; every one computes in float32 inside and returns its input's dtype.

    Any tensor argument may be a strided view whose last axis is contiguous, but weights are contiguous. Norm weights
    are float32 whatever the model's dtype, and hold the whole factor (Gemma's 1 + w is added up when loaded).
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """rms_norm(x_TE, weight_E, eps) -> normed_TE: x / sqrt(mean(x²) + eps) * weight, x untouched."""

    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    """add_rms_norm(x_TE, residual_TE, weight_E, eps) -> (normed_TE, sum_TE): sum = x + residual, rounded to the dtype,
    normed = rms_norm(sum). `residual` may be overwritten with the sum; `x` may not."""

    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    """rope(x_TND, cos_TF, sin_TF) -> x_TND: rotate dimension i with i + F, for i < F; those from 2F on pass through.
    cos and sin are float32, contiguous, one row per token. May work in place; the returned tensor is the one to use."""

    norm_rope: Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor]
    """norm_rope(x_TND, weight_ND, eps, cos_TF, sin_TF) -> x_TND: rms_norm of each head by its own row of the weight,
    rounded to the dtype, then rope. May work in place; the returned tensor is the one to use."""

    gated: Callable[[Tensor, Activation], Tensor]
    """gated(x_T2M, activation) -> out_TM: activation(x[:, :M]) * x[:, M:]; gelu_tanh is GELU's tanh approximation."""


PLAIN = Kernels(
    rms_norm=plain.rms_norm,
    add_rms_norm=plain.add_rms_norm,
    rope=plain.rope,
    norm_rope=plain.norm_rope,
    gated=plain.gated,
)


def choose(device: torch.device) -> Kernels:
    """The kernels for a device: fused Triton ones on CUDA, else the plain ones, which are also their reference."""
    if device.type == "cuda":
        from sapwood.kernels.triton.fused import KERNELS

        return KERNELS
    return PLAIN
