"""What weights are read from: a checkpoint's tensors, as they are or as rows in the blocks of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.arch.shard import Piece
from sapwood.base.errors import ModelError


class Form(IntEnum):
    """How a checkpoint stores rows; GGUF's numbers."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30


FLOATS: Mapping[torch.dtype, Form] = MappingProxyType(
    {torch.float32: Form.F32, torch.float16: Form.F16, torch.bfloat16: Form.BF16}
)
"""The forms that are numbers and no blocks."""


class Stored(NamedTuple):
    """Rows of a checkpoint's tensor, contiguous; `order`, if there is one, says which of them is the i-th (int64)."""

    form: Form
    data: Tensor | NDArray[np.uint8]
    order: NDArray[np.int64] | None = None


def stored(rows: Tensor) -> Stored:
    """Plain rows; what is neither float32 nor half of it becomes float32."""
    if rows.dtype not in FLOATS:
        rows = rows.float()
    return Stored(FLOATS[rows.dtype], rows.contiguous())


class Source(Protocol):
    """A checkpoint, with Hugging Face names and layout."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        ...

    def read(self, name: str, where: tuple[slice, ...]) -> Tensor:
        """A slice of one tensor on the CPU, in the checkpoint's dtype or, if it is in blocks, in float32; there until it is released."""
        ...

    def stored(self, name: str, rows: slice) -> Stored | None:
        """Whole rows of a matrix in the blocks that they are stored in, or None where there are none that `Form` knows."""
        ...

    def release(self, name: str) -> int:
        """Whoever has read a tensor has copied it: its memory may go. Returns how many bytes of the files are done with."""
        ...


def plain(piece: Piece, source: Source) -> Tensor:
    """The piece of a tensor that must hold numbers as they are. Raises ModelError where it does not."""
    data = source.read(piece.name, piece.source)
    if not data.is_floating_point():
        raise ModelError(f"{piece.name} holds {data.dtype}: only plain floating-point weights can be loaded.")
    data = data.mT if piece.transposed else data
    return torch.nn.functional.normalize(data.float(), dim=-1).to(data.dtype) if piece.unit_rows else data
