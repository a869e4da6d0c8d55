"""Attention sinks (Xiao et al., 2023): what an attention's weights go to besides values."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.arch.parts import Axis, Leaf, StoredTensor


@dataclass(frozen=True)
class Sinks(Leaf):
    """A score of each of so many query heads, from the tensor of that name."""

    name: str
    count: int

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor("weight", self.name, (Axis(self.count, 1),)),)
