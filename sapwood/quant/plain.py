"""Weights in the model's own dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.arch.parts import Linear
from sapwood.arch.shard import Piece


class PlainWeights(nn.Module):
    """weight_OI and, where the part has one, bias_O (O outputs, I inputs)."""

    def __init__(self, part: Linear, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _empty((part.out, part.inp), device, dtype)
        self.bias = _empty((part.out,), device, dtype) if part.bias else None

    def load(self, piece: Piece, data: Tensor) -> None:
        self.get_parameter(piece.param)[piece.target].copy_(data)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Plain:
    """The Method that stores weights as they are multiplied."""

    def create(self, part: Linear, device: torch.device, dtype: torch.dtype) -> PlainWeights:
        return PlainWeights(part, device, dtype)


def _empty(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)
