"""Weights in the model's own dtype.

Suffix legend: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sapwood.arch.parts import Linear, Place, StoredTensor
from sapwood.arch.shard import Piece
from sapwood.kernels import Activation, Kernels, RmsNorm
from sapwood.quant.base import Weights, linear_at
from sapwood.quant.source import Source, plain


class PlainWeights(Weights):
    """weight_OI and, where the part has one, bias_O."""

    refills = True

    def __init__(self, part: Linear, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__(kernels)
        self.weight = _empty((part.out, part.inp), device, dtype)
        self.bias = _empty((part.out,), device, dtype) if part.bias else None
        if self.bias is not None:
            self.bias.zero_()  # of which a checkpoint may have only some

    def load(self, piece: Piece, source: Source) -> None:
        self.get_parameter(piece.param)[piece.target].copy_(plain(piece, source))

    def forward(self, x_TI: Tensor) -> Tensor:
        return self._kernels.linear(x_TI, self.weight, self.bias)[0]

    def normed(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm, activation: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._kernels.linear(x_TI, self.weight, self.bias, norm, residual_TI, activation)


@dataclass(frozen=True)
class Plain:
    """The Method that stores weights as they are multiplied."""

    shown = "plain weights"

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        return place.leaf.tensors()

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> PlainWeights:
        return PlainWeights(linear_at(place), device, dtype, kernels)


def _empty(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)
