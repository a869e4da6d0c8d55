"""Attention sinks (Xiao et al., 2023): what an attention's weights go to besides values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from sapwood.arch.parts import Axis, Leaf, StoredTensor
from sapwood.arch.share import Share


@dataclass(frozen=True)
class Sinks(Leaf):
    """A score of each of so many query heads, from the tensor of that name."""

    name: str
    count: int

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor("weight", self.name, (Axis(self.count, 1),)),)

    def shared(self, share: Share) -> Self:
        return replace(self, count=share.count(self.count))
