"""The weights of experts, each as if it were alone: what one Linear is made of and how it is filled holds for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sapwood.arch.shard import Piece
from sapwood.quant.base import Leaf, Weights
from sapwood.quant.source import Source, Stored

W = TypeVar("W", bound=Weights)


class Stacked(Leaf, Generic[W]):
    """Weights for each expert. Pieces are of one expert, or of all."""

    def __init__(self, experts: Sequence[W]) -> None:
        super().__init__()
        self._each = nn.ModuleList(experts)

    @property
    def experts(self) -> Sequence[W]:
        return list(self._each)  # type: ignore[arg-type]

    @property
    def refills(self) -> bool:  # type: ignore[override]
        return all(expert.refills for expert in self.experts)

    def load(self, piece: Piece, source: Source) -> None:
        one = replace(piece, target=piece.target[1:])
        if len(piece.source) < len(piece.target):  # the target has an axis more, whose entry is the expert
            self.experts[piece.target[0].start].load(one, source)
            return
        one = replace(one, source=piece.source[1:])
        for expert, data in zip(self.experts, source.read(piece.name, piece.source), strict=True):
            expert.load(one, _Read(source, data))

    def randomize(self, random: torch.Generator) -> None:
        for expert in self.experts:
            expert.randomize(random)

    def finish(self) -> None:
        for expert in self.experts:
            expert.finish()


@dataclass(frozen=True, eq=False)
class _Read:
    """One expert's entry of what has been read of a source for all."""

    source: Source
    data: Tensor

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape[1:] for name, shape in self.source.shapes().items()}

    def read(self, name: str, where: tuple[slice, ...]) -> Tensor:
        return self.data

    def stored(self, name: str, rows: slice) -> Stored | None:
        return None

    def release(self, name: str) -> int:
        return self.source.release(name)
