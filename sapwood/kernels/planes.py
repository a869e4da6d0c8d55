"""Quantised weights as kernels of a GPU read them: planes of codes, scales and offsets, whatever a checkpoint had.

Suffix legend: O outputs, I inputs, B bytes of a row of codes, G groups of inputs, S groups of outputs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["fp8", "int8", "uint4", "e2m1", "table"]
"""What a code stands for: float8_e4m3fn; an integer; four bits less 8; the four bits of e2m1; an entry of a table of 16."""

_MOST_APART = 128
"""Bytes between the two columns that share one, at most."""


class Planes(NamedTuple):
    """value_OI = row_O * (scale * number(code) + offset), a scale for each `group` inputs and `tall` outputs.

    Codes of four bits: a run of 2 * `pair` columns is `pair` bytes, whose low halves are the first `pair` columns of it.
    Column j of the codes is input order_I[j].
    """

    form: Form
    num_inputs: int
    codes_OB: Tensor
    pair: int = 0
    group: int = 0
    tall: int = 1
    scale_GS: Tensor | None = None
    offset_GS: Tensor | None = None
    row_O: Tensor | None = None
    order_I: Tensor | None = None
    table: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        return self.codes_OB.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all that a product reads."""
        tensors = (self.codes_OB, self.scale_GS, self.offset_GS, self.row_O)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def slice(self) -> int:
        """Columns that are neighbours and share a scale, a power of 2 of which a row has a whole number."""
        return math.gcd(self.codes_OB.shape[1], self.pair or _MOST_APART, self.group or _MOST_APART)


def pair_of(num_inputs: int, group: int) -> int:
    """How far apart the columns may lie that share a byte, 0 where they can not."""
    pair = _MOST_APART
    while pair >= 16 and (num_inputs % (2 * pair) or (group and group % pair)):
        pair //= 2
    return pair if pair >= 16 else 0


def paired(nibbles_OH: Tensor, pair: int) -> Tensor:
    """Bytes whose low halves are even inputs, rearranged for `Planes`."""
    even, odd = nibbles_OH & 0xF, nibbles_OH >> 4
    flat = torch.stack((even, odd), dim=-1).view(len(nibbles_OH), -1, 2, pair)
    return (flat[:, :, 0] | flat[:, :, 1] << 4).reshape(nibbles_OH.shape).contiguous()
