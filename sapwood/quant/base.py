"""The protocol of a way to store and multiply weights.

Suffix legend: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from sapwood.arch.experts import Stack
from sapwood.arch.parts import Linear, Place, StoredTensor
from sapwood.arch.shard import Piece
from sapwood.kernels import FUSED, Activation, Kernels, LayerNorm, RmsNorm
from sapwood.quant.source import Source


class Leaf(nn.Module):
    """The module of a part with weights. Order of calls: `load` for each piece, or `randomize` once; then `finish`.

    Attributes:
        refills: Once it is finished, pieces may be loaded again, any of them, and then `finish` called: its tensors stay where they are.
    """

    refills = False

    def load(self, piece: Piece, source: Source) -> None:
        """Take one piece of the checkpoint."""
        raise NotImplementedError

    def randomize(self, random: torch.Generator) -> None:
        """Random weights, made where they are to be."""
        for weight in self.parameters(recurse=False):
            weight.normal_(std=0.02, generator=random)

    def finish(self) -> None:
        """All its pieces are there: they may be laid out anew."""


class Weights(Leaf):
    """One Linear's weights. A method writes `load` and `forward`, and `normed` where it can do better."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels

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

    def behind(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm | LayerNorm | None, gate: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        """`normed` behind any norm, or none, and with any gate."""
        if gate is not None and gate not in FUSED:
            y_TO, sum_TI = self.behind(x_TI, residual_TI, norm)
            return self._kernels.gated(y_TO, gate), sum_TI
        if isinstance(norm, RmsNorm):
            return self.normed(x_TI, residual_TI, norm, gate)
        if norm is not None:
            normed_TI, sum_TI = self._kernels.layer_norm(x_TI, residual_TI, norm)
        else:
            normed_TI = sum_TI = x_TI if residual_TI is None else x_TI + residual_TI
        y_TO = self(normed_TI)
        return (y_TO if gate is None else self._kernels.gated(y_TO, gate)), sum_TI

    def rounds(self, num_tokens: int) -> bool:
        """Whether inputs of so many tokens are rounded first, so that a gate before it is better left to `gated`."""
        return False

    def gated(self, x_T2I: Tensor, gate: Activation) -> Tensor:
        """forward(`Kernels.gated`(x))."""
        return self(self._kernels.gated(x_T2I, gate))


class Method(Protocol):
    """One way. It is chosen for each Linear by its place, when a model is built."""

    @property
    def shown(self) -> str:
        """What is multiplied there, in a few words."""
        ...

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        """What the Linear there is made of in a checkpoint that stores it this way."""
        ...

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Weights:
        """Its weights, not yet filled."""
        ...


Choice = Callable[[Place], Method]
"""The method of each Linear of a model, and of each stack of experts: of all its Linears alike."""


def everywhere(method: Method) -> Choice:
    return lambda place: method


def tensors_by(choice: Choice) -> Callable[[Place], Sequence[StoredTensor]]:
    """What each leaf of a model is made of."""

    def tensors(place: Place) -> Sequence[StoredTensor]:
        leaf = place.leaf
        if isinstance(leaf, Stack):
            return leaf.of_all(choice(place).tensors(replace(place, leaf=leaf.linear)))
        return choice(place).tensors(place) if isinstance(leaf, Linear) else leaf.tensors()

    return tensors


def linear_at(place: Place) -> Linear:
    """The Linear there; of experts, that of the first."""
    if isinstance(place.leaf, Stack):
        return place.leaf.of_one(0)
    assert isinstance(place.leaf, Linear), "methods store Linears"
    return place.leaf
