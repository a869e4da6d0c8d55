"""The matrix products of a model and the kernels between them, chosen once per device.

Suffix legend: T tokens, V vocabulary, E hidden size, N query and key heads side by side, D head size, F half of the
rotated dimensions of a head, M intermediate size, I inputs and O outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.device import abilities_of
from sapwood.kernels import adapters, experts, plain
from sapwood.kernels.adapters import Lanes, Matrices
from sapwood.kernels.experts import Routed as Routed
from sapwood.kernels.planes import Planes

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2", "swiglu_clamped"]


class RmsNorm(NamedTuple):
    """The float32 weight_E and the eps of an RMS norm."""

    weight_E: Tensor
    eps: float


class LayerNorm(NamedTuple):
    """Of a norm of what differs from the mean, and a bias if there is one; float32."""

    weight_E: Tensor
    eps: float
    bias_E: Tensor | None = None


class NormRope(NamedTuple):
    """How a step's queries and keys get their positions: each head is normed by its row of `norm_ND`, if any, then rotated.

    Dimension i turns with i + F for i < F, or if `interleaved` 2i with 2i + 1; those from 2F on pass through. A norm is of
    x less its mean if `center`, and follows the rotation if `late`. Tensors are float32 and contiguous.
    """

    cos_TF: Tensor
    sin_TF: Tensor
    norm_ND: Tensor | None = None
    eps: float = 0.0
    interleaved: bool = False
    center: bool = False
    late: bool = False


FUSED: frozenset[Activation | None] = frozenset({None, "silu", "gelu_tanh"})
"""Activations that products of few tokens apply themselves, where they gate."""

Few = Callable[[Tensor, Tensor, Tensor | None, RmsNorm | None, Tensor | None, Activation | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Quantised:
    """Products with weights in planes, in bfloat16 or float16. Which one is taken follows from the number of tokens."""

    few: Callable[
        [Tensor, Planes, Tensor | None, RmsNorm | None, Tensor | None, Activation | None], tuple[Tensor, Tensor]
    ]
    """few(x_TI, weights, bias_O, norm, residual_TI, activation): what `Kernels.planes` does, as one launch."""

    few_tokens: Callable[[Planes], int]
    """The most tokens that it is for."""

    few_norms: Callable[[Planes, int], bool]
    """few_norms(weights, num_tokens): whether it is faster with the norm in it than behind one."""

    many: Callable[[Tensor, Planes, Tensor | None], Tensor]
    """many(x_TI, weights, bias_O) -> y_TO: the product alone, of activations as they are."""

    rounded: Callable[[Tensor, Planes, RmsNorm | None, Tensor | None, Activation | None], tuple[Tensor, Tensor | None]]
    """rounded(x, weights, norm, residual_TI, activation) -> (codes_TI, scale_GT): rms_norm(x + residual), or the gate of x, or
    x, rounded to eight bits as the weights ask for. The sum replaces the residual."""

    eight: Callable[[Tensor, Tensor | None, Planes, Tensor | None, torch.dtype], Tensor]
    """eight(codes_TI, scale_GT, weights, bias_O, dtype) -> y_TO: the product of what was rounded."""


@dataclass(frozen=True)
class Kernels:
    """One function per job; every one computes in float32 inside and returns its input's dtype.

    Any tensor argument may be a strided view whose last axis is contiguous, but weights are contiguous. Norm weights
    are float32 whatever the model's dtype, and hold the whole factor (Gemma's 1 + w is added up when loaded).
    """

    embed: Callable[[Tensor, Tensor, float], Tensor]
    """embed(ids_T, weight_VE, scale) -> x_TE: the ids' rows times scale. The ids must be below V."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """rms_norm(x_TE, weight_E, eps) -> normed_TE: x / sqrt(mean(x²) + eps) * weight, x untouched."""

    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    """add_rms_norm(x_TE, residual_TE, weight_E, eps) -> (normed_TE, sum_TE): sum = x + residual, rounded to the dtype,
    normed = rms_norm(sum). `residual` may be overwritten with the sum; `x` may not."""

    layer_norm: Callable[[Tensor, Tensor | None, LayerNorm], tuple[Tensor, Tensor]]
    """layer_norm(x_TE, residual_TE, norm) -> (normed_TE, sum_TE): as the two above, of the sum's difference from its mean,
    plus the bias; without a residual the sum is x."""

    gated: Callable[[Tensor, Activation], Tensor]
    """gated(x_T2M, activation) -> out_TM: activation(x[:, :M]) * x[:, M:]; gelu_tanh is GELU's tanh approximation. With
    swiglu_clamped g * sigmoid(1.702 * g) * (u + 1) of both halves, cut off beyond 7."""

    activated: Callable[[Tensor, Activation], Tensor]
    """activated(x_TM, activation) -> out_TM: the activation alone."""

    few: Few | None = None
    """few(x_TI, weight_OI, bias_O, norm, residual_TI, activation): what `linear` does, as one launch, for at most
    `few_tokens` tokens of bfloat16 or float16."""

    few_tokens: int = 0

    quantised: Quantised | None = None
    """Where weights may be in planes."""

    routed: Callable[[Tensor, RmsNorm | None, Tensor, Routed], Tensor] | None = None
    """routed(x_TE, norm, logits_TX, experts): what `experts` does, without a choice on the host; behind a norm for at most
    `routed_few` tokens of bfloat16."""

    routed_few: int = 0

    adapt: Callable[[Tensor, Tensor, Matrices, Lanes], None] = adapters.add
    """adapt(y_TO, x_TI, matrices, lanes): add to a Linear's product of x what the adapters of its tokens change."""

    def norm(self, x_TE: Tensor, residual_TE: Tensor | None, how: RmsNorm | LayerNorm) -> tuple[Tensor, Tensor]:
        """(normed_TE, sum_TE), where sum = x + residual, or x where there is none. `residual` may be overwritten."""
        if isinstance(how, LayerNorm):
            return self.layer_norm(x_TE, residual_TE, how)
        if residual_TE is None:
            return self.rms_norm(x_TE, *how), x_TE
        return self.add_rms_norm(x_TE, residual_TE, *how)

    def experts(self, x_TE: Tensor, norm: RmsNorm | LayerNorm | None, logits_TX: Tensor, how: Routed) -> Tensor:
        """y_TE: for each row's norm the weighted sum of what those experts yield that its router's products choose."""
        fused = len(x_TE) <= self.routed_few and x_TE.dtype == torch.bfloat16 and isinstance(norm, RmsNorm)
        if norm is not None and not fused:
            x_TE, norm = self.norm(x_TE, None, norm)[0], None
        if self.routed is None:
            return experts.compute(x_TE, logits_TX, how, self.gated)
        assert norm is None or isinstance(norm, RmsNorm)
        return self.routed(x_TE, norm, logits_TX, how)

    def linear(
        self,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        norm: RmsNorm | None = None,
        residual_TI: Tensor | None = None,
        activation: Activation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The product of plain weights between its neighbours, as `around` has them."""
        few = self.few
        if activation is not None and activation not in FUSED:
            y_TO, sum_TI = self.linear(x_TI, weight_OI, bias_O, norm, residual_TI)
            return self.gated(y_TO, activation), sum_TI
        if few is None or len(x_TI) > self.few_tokens or x_TI.dtype not in (torch.bfloat16, torch.float16):
            return self.around(lambda x_TI: F.linear(x_TI, weight_OI, bias_O), x_TI, norm, residual_TI, activation)
        if norm is None or x_TI.dtype == torch.bfloat16:
            return few(x_TI, weight_OI, bias_O, norm, residual_TI, activation)
        # The kernel norms last, and a value not yet normed may be beyond float16.
        return self.around(
            lambda x_TI: few(x_TI, weight_OI, bias_O, None, None, activation)[0], x_TI, norm, residual_TI, None
        )

    def planes(
        self,
        x_TI: Tensor,
        weights: Planes,
        bias_O: Tensor | None = None,
        norm: RmsNorm | None = None,
        residual_TI: Tensor | None = None,
        activation: Activation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The product of quantised weights between its neighbours, as `around` has them."""
        made = self.quantised
        assert made is not None
        if activation is not None and activation not in FUSED:
            y_TO, sum_TI = self.planes(x_TI, weights, bias_O, norm, residual_TI)
            return self.gated(y_TO, activation), sum_TI
        if len(x_TI) <= made.few_tokens(weights):
            # As with plain weights the kernel norms last, and so only what is in bfloat16.
            if norm is None or (x_TI.dtype == torch.bfloat16 and made.few_norms(weights, len(x_TI))):
                return made.few(x_TI, weights, bias_O, norm, residual_TI, activation)
            return self.around(
                lambda x_TI: made.few(x_TI, weights, bias_O, None, None, activation)[0], x_TI, norm, residual_TI, None
            )
        if not self.rounds(weights, len(x_TI)):
            return self.around(lambda x_TI: made.many(x_TI, weights, bias_O), x_TI, norm, residual_TI, activation)
        codes_TI, scale_GT = made.rounded(x_TI, weights, norm, residual_TI, None)
        y_TO = made.eight(codes_TI, scale_GT, weights, bias_O, x_TI.dtype)
        return y_TO if activation is None else self.gated(
            y_TO, activation
        ), x_TI if residual_TI is None else residual_TI

    def rounds(self, weights: Planes, num_tokens: int) -> bool:
        """Whether activations of so many tokens are rounded, so that it is cheaper to leave a gate before it to `gated_planes`."""
        return weights.rounding is not None and num_tokens > (
            self.quantised.few_tokens(weights) if self.quantised else 0
        )

    def gated_planes(self, x_T2I: Tensor, weights: Planes, bias_O: Tensor | None, activation: Activation) -> Tensor:
        """y_TO = planes(gated(x)), faster than these two where it `rounds`."""
        made = self.quantised
        assert made is not None
        if activation not in FUSED or not self.rounds(weights, len(x_T2I)):
            return self.planes(self.gated(x_T2I, activation), weights, bias_O)[0]
        codes_TI, scale_GT = made.rounded(x_T2I, weights, None, None, activation)
        return made.eight(codes_TI, scale_GT, weights, bias_O, x_T2I.dtype)

    def around(
        self,
        product: Callable[[Tensor], Tensor],
        x_TI: Tensor,
        norm: RmsNorm | None,
        residual_TI: Tensor | None,
        activation: Activation | None,
    ) -> tuple[Tensor, Tensor]:
        """(y_TO, sum_TI): sum = x + residual, or x where there is none; y = gated(product(rms_norm(sum))), where norm
        and gate may be None. A residual comes with a norm, and may be overwritten with the sum; `x` may not."""
        if norm is None:
            assert residual_TI is None
            normed_TI = x_TI
        else:
            normed_TI, x_TI = self.norm(x_TI, residual_TI, norm)
        y_TO = product(normed_TI)
        return (y_TO if activation is None else self.gated(y_TO, activation)), x_TI


PLAIN = Kernels(
    embed=plain.embed,
    rms_norm=plain.rms_norm,
    add_rms_norm=plain.add_rms_norm,
    layer_norm=plain.layer_norm,
    gated=plain.gated,
    activated=plain.activated,
)


def choose(device: torch.device) -> Kernels:
    """The kernels for a device: fused Triton ones where they compile, else the plain ones, which are also their reference."""
    if Ability.TRITON in abilities_of(device):
        from sapwood.kernels.triton.fused import KERNELS

        return KERNELS
    return PLAIN
