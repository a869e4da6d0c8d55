"""Parts of one Linear that are stored in different ways, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sapwood.arch.parts import Linear, Place, StoredTensor
from sapwood.arch.shard import Piece
from sapwood.kernels import Kernels
from sapwood.quant.base import Method, Weights, linear_at
from sapwood.quant.source import Source


@dataclass(frozen=True)
class Apart:
    """The Method of a Linear of which each run of parts has one of its own: as many `methods` as there are parts."""

    methods: tuple[Method, ...]

    @property
    def shown(self) -> str:
        return "; beside them ".join(dict.fromkeys(method.shown for method in self.methods))

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        return [
            replace(tensor, param=f"{index}/{tensor.param}")
            for index, (method, run) in enumerate(self.runs(place))
            for tensor in method.tensors(run)
        ]

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Weights:
        return Beside([method.create(run, device, dtype, kernels) for method, run in self.runs(place)], kernels)

    def runs(self, place: Place) -> list[tuple[Method, Place]]:
        """Neighbours with the same method are one Linear."""
        linear = linear_at(place)
        runs: list[tuple[Method, Linear]] = []
        for method, part in zip(self.methods, linear.parts, strict=True):
            if runs and runs[-1][0] == method:
                runs[-1] = (method, replace(runs[-1][1], parts=(*runs[-1][1].parts, part)))
            else:
                runs.append((method, replace(linear, parts=(part,))))
        return [(method, replace(place, leaf=run)) for method, run in runs]


class Beside(Weights):
    """The outputs of several, one behind the other."""

    def __init__(self, several: Sequence[Weights], kernels: Kernels) -> None:
        super().__init__(kernels)
        self._several = nn.ModuleList(several)

    def _each(self) -> Sequence[Weights]:
        return list(self._several)  # type: ignore[arg-type]

    def load(self, piece: Piece, source: Source) -> None:
        index, _, param = piece.param.partition("/")
        self._each()[int(index)].load(replace(piece, param=param), source)

    def randomize(self, random: torch.Generator) -> None:
        for one in self._each():
            one.randomize(random)

    def finish(self) -> None:
        for one in self._each():
            one.finish()

    def forward(self, x_TI: Tensor) -> Tensor:
        return torch.cat([one(x_TI) for one in self._each()], dim=-1)
