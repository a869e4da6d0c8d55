"""The protocol of a way to store and multiply weights.

Suffix legend: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from sapwood.arch.parts import Linear
from sapwood.arch.shard import Piece
from sapwood.kernels import Activation, Kernels, RmsNorm


class Weights(nn.Module):
    """One Linear's weights. A method writes `load` and `forward`, and `normed` where it can do better."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels

    def load(self, piece: Piece, data: Tensor) -> None:
        """Take one piece of the checkpoint: `data` is already cut to the piece, in the checkpoint's dtype, on the CPU."""
        raise NotImplementedError

    def forward(self, x_TI: Tensor) -> Tensor:
        """y_TO, in the model's dtype."""
        raise NotImplementedError

    def normed(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm, activation: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        """The product between its neighbours: (y, sum_TI), where sum = x + residual, or x where there is none, and
        y = forward(rms_norm(sum)), with an activation gated to half of the outputs, as in `Kernels.gated`.

        `residual` may be overwritten with the sum; `x` may not.
        """
        return self._kernels.around(self.forward, x_TI, norm, residual_TI, activation)


class Method(Protocol):
    """Chosen per Linear when a model is built."""

    def create(self, part: Linear, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Weights:
        """The weights of a part, their memory taken but not filled."""
        ...
