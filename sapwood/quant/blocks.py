"""Weights in a GGUF file's own blocks, for the kernels of a GPU: never widened, neither on the way nor in memory.

Suffix legend: T tokens, I inputs, O outputs, B bytes of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sapwood.arch.parts import Linear, Place, StoredTensor
from sapwood.arch.shard import Piece
from sapwood.base.errors import ModelError
from sapwood.kernels import Activation, Kernels, RmsNorm
from sapwood.kernels.ggml import FORMS, of_blocks, row_bytes
from sapwood.kernels.planes import Planes
from sapwood.quant.base import Weights, linear_at
from sapwood.quant.plain import PlainWeights
from sapwood.quant.source import Source, plain


class Blocks:
    """The Method of a GGUF file, of which `forms` says how each tensor is stored. Linears that are not all in blocks are plain."""

    def __init__(self, forms: Mapping[str, int]) -> None:
        self._forms = forms

    @property
    def shown(self) -> str:
        return "the file's own blocks"

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        return place.leaf.tensors()

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Weights:
        part = linear_at(place)
        forms = [self._forms.get(f"{place.prefix}{one.name}.weight", -1) for one in part.parts]
        fits = not (part.transposed or part.unit_rows) and all(form in FORMS and part.inp % 32 == 0 for form in forms)
        if not fits or kernels.quantised is None or dtype not in (torch.bfloat16, torch.float16):
            return PlainWeights(part, device, dtype, kernels)
        return BlockWeights(part, forms, device, dtype, kernels)


class BlockWeights(Weights):
    """Rows of blocks, a run for each part, until they are laid out for the kernels."""

    def __init__(
        self, part: Linear, forms: Sequence[int], device: torch.device, dtype: torch.dtype, kernels: Kernels
    ) -> None:
        super().__init__(kernels)
        self._part, self._forms, self._device = part, forms, device
        self._rows: list[Tensor] = []
        self._planes: Planes | None = None
        self.bias = None
        if part.bias:
            self.bias = nn.Parameter(torch.zeros(part.out, device=device, dtype=dtype), requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        if piece.param == "bias":
            assert self.bias is not None
            self.bias[piece.target] = plain(piece, source).to(self.bias)
            return
        self._planes = None  # made up until now
        found = source.stored(piece.name, piece.source[0])
        if found is None or found.form != self._forms[len(self._rows)]:
            raise ModelError(f"{piece.name} is stored in other blocks than when the model was built: load it again.")
        rows = np.asarray(found.data if found.order is None else found.data[found.order])
        self._rows.append(torch.from_numpy(np.ascontiguousarray(rows)).to(self._device, copy=True))

    def randomize(self, random: torch.Generator) -> None:
        """Zeros: what kernels are compiled for are forms and sizes."""
        self._rows = [
            torch.zeros(one.size, row_bytes(form, self._part.inp), dtype=torch.uint8, device=self._device)
            for one, form in zip(self._part.parts, self._forms, strict=True)
        ]

    def finish(self) -> None:
        self._planes = of_blocks(list(zip(self._forms, self._rows, strict=True)))
        self._rows = []

    def _ready(self) -> Planes:
        """Before weights are there, so that kernels can be compiled for them, such as will be."""
        if self._planes is None:
            self.randomize(torch.Generator())
            self.finish()
        assert self._planes is not None
        return self._planes

    def forward(self, x_TI: Tensor) -> Tensor:
        return self._kernels.planes(x_TI, self._ready(), self.bias)[0]

    def normed(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm, activation: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._kernels.planes(x_TI, self._ready(), self.bias, norm, residual_TI, activation)
