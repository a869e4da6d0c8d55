"""The protocol of a way to store and multiply weights."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sapwood.arch.parts import Linear
from sapwood.arch.shard import Piece


class Weights(Protocol):
    """One Linear's weights. `forward` takes x [T, inp] and returns y [T, out], in the model's dtype."""

    def load(self, piece: Piece, data: Tensor) -> None:
        """Take one piece of the checkpoint: `data` is already cut to the piece, in the checkpoint's dtype, on the CPU."""
        ...

    def forward(self, x: Tensor) -> Tensor: ...


class Method(Protocol):
    """Chosen per Linear when a model is built."""

    def create(self, part: Linear, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        """A module that keeps the protocol `Weights`, its memory taken but not filled."""
        ...
