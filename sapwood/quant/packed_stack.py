"""The weights of experts for the CPU's own kernels: each as if it were alone, since only those that are chosen are read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sapwood.arch.experts import Stack
from sapwood.arch.shard import Piece
from sapwood.kernels import Kernels
from sapwood.kernels.cpu.library import Machine
from sapwood.quant.base import Leaf
from sapwood.quant.packed import PackedLinear, Product, Rounded
from sapwood.quant.source import Source, Stored


class PackedStack(Leaf):
    """A `PackedLinear` for each expert."""

    def __init__(self, part: Stack, machine: Machine, rounded: Rounded | None, kernels: Kernels) -> None:
        super().__init__()
        self._experts = [PackedLinear(part.linear, machine, rounded, kernels) for _ in range(part.count)]

    def load(self, piece: Piece, source: Source) -> None:
        first, *target = piece.target
        one = replace(piece, target=tuple(target))
        if len(piece.source) < len(piece.target):
            self._experts[first.start].load(one, source)
            return
        one = replace(one, source=piece.source[1:])
        for expert in range(first.start, first.stop):
            self._experts[expert].load(one, _Entry(source, piece.source[0].start + expert - first.start))

    def randomize(self, random: torch.Generator) -> None:
        for expert in self._experts:
            expert.randomize(random)

    def finish(self) -> None:
        for expert in self._experts:
            expert.finish()

    @property
    def products(self) -> list[Product]:
        return [expert.product for expert in self._experts]

    @property
    def nbytes(self) -> int:
        return sum(expert.nbytes for expert in self._experts)


@dataclass(frozen=True)
class _Entry:
    """One of the tensors that lie one behind the other in those of a source."""

    source: Source
    number: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape[1:] for name, shape in self.source.shapes().items()}

    def read(self, name: str, where: tuple[slice, ...]) -> Tensor:
        return self.source.read(name, (slice(self.number, self.number + 1), *where))[0]

    def stored(self, name: str, rows: slice) -> Stored | None:
        return None

    def release(self, name: str) -> int:
        return self.source.release(name)
