"""Quantised weights as kernels of a GPU read them: planes of codes, scales and offsets, whatever a checkpoint had.

Suffix legend: O outputs, I inputs, B bytes of a row of codes, H = I / 2, G groups of inputs, S groups of outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["fp8", "int8", "uint4", "e2m1", "table"]
"""What a code stands for: float8_e4m3fn; an integer; four bits less 8; the four bits of e2m1; an entry of a table of 16."""

Rounding = Literal["token", "tensor", "block"]
"""What of activations shares a scale, where they are rounded to eight bits: a token, all, 128 inputs of a token."""

BLOCK = 128
"""Inputs, and outputs, of a block that shares a scale."""

_MOST_APART = 128
"""Bytes between the two columns that share one, at most."""

MOST_TILES = 1024
"""Of a product that is cut along its inputs."""

_LEAST_RUN = 16
"""Columns that a matrix unit takes at once."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The table of which the form e2m1 needs none."""


class Planes(NamedTuple):
    """value_OI = row_O * (scale * number(code) + offset), a scale and an offset for each `group` inputs and `tall` outputs.

    Codes of four bits: a run of 2 * `pair` columns is `pair` bytes, whose low halves are the first `pair` columns of it.
    Column j of the codes is input order_I[j]. `rounding` is how activations may be rounded for it, `input_scale` their
    scale where that is known before, and `rounded_O` row_O times it; `scale_SG` are the scales of blocks the other way around.
    `arrived` counts the parts of products that are cut along their inputs: `MOST_TILES` zeros, before and after.
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
    rounding: Rounding | None = None
    input_scale: Tensor | None = None
    rounded_O: Tensor | None = None
    scale_SG: Tensor | None = None
    arrived: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        return self.codes_OB.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all that a product reads."""
        read = (self.codes_OB, self.scale_GS, self.offset_GS, self.row_O)
        return sum(one.nbytes for one in read if one is not None)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: one for name, one in self._asdict().items() if isinstance(one, Tensor)}

    @property
    def slice(self) -> int:
        """Columns that are neighbours and share a scale, a power of 2 of which a row has a whole number."""
        return math.gcd(self.codes_OB.shape[1], self.pair or _MOST_APART, self.group or _MOST_APART)


@dataclass(frozen=True, eq=False)
class StackedPlanes:
    """The planes of experts' weights, one behind the other: every tensor of `planes` has a first axis of experts."""

    planes: Planes
    shape: tuple[int, int, int]  # experts, outputs, inputs
    run: int  # columns that are neighbours and share a scale, as `Planes.slice`

    @staticmethod
    def of(several: Sequence[Planes]) -> StackedPlanes:
        """Of weights that differ at most in the dtypes of their scales, and in whether there are offsets. Activations of experts
        stay as they are."""
        first = several[0]._replace(**_UNROUNDED)
        found: dict[str, Any] = {}
        for name in set().union(*(one._replace(**_UNROUNDED).tensors for one in several)):
            ours = [getattr(one, name) for one in several]
            some = next(one for one in ours if one is not None)
            dtype = functools.reduce(torch.promote_types, {one.dtype for one in ours if one is not None})
            found[name] = torch.stack([torch.zeros_like(some) if one is None else one for one in ours]).to(dtype)
        shape = (len(several), first.num_outputs, first.num_inputs)
        return StackedPlanes(first._replace(**found), shape, first.slice)

    @staticmethod
    def blank(one: Planes, count: int) -> StackedPlanes:
        """Room for so many experts' weights such as these, which hold anything."""
        planes = one._replace(**_UNROUNDED)
        room: dict[str, Any] = {
            name: tensor.new_empty((count, *tensor.shape)) for name, tensor in planes.tensors.items()
        }
        return StackedPlanes(planes._replace(**room), (count, one.num_outputs, one.num_inputs), one.slice)


_UNROUNDED: Mapping[str, Any] = MappingProxyType(
    dict.fromkeys(("rounding", "input_scale", "rounded_O", "scale_SG", "arrived"))
)
"""Fields of planes that are of no use where activations stay as they are, and products are not cut along their inputs."""


def of_scaled(
    values_OI: Tensor, scale: Tensor, rounding: Rounding | None = None, input_scale: Tensor | None = None
) -> Planes | None:
    """float8_e4m3fn or int8 with a float32 scale [1, 1], [O, 1], or one for each 128 inputs and 128 outputs, or each output. None
    where kernels cannot read it."""
    outputs, inputs = values_OI.shape
    blocks = scale.shape[1] > 1 or len(scale) not in (1, outputs)
    tall = 1 if len(scale) == outputs else 128
    row_O = None if blocks else scale.float().expand(outputs, 1).reshape(-1).contiguous()
    # Activations are rounded only where the product of what is rounded knows the scales.
    fits = inputs % 128 == 0 and rounding == "block" and tall == 128 if blocks else rounding != "block"
    made = Planes(
        "int8" if values_OI.dtype == torch.int8 else "fp8", inputs, values_OI.contiguous().view(torch.uint8),
        group=128 if blocks else 0, tall=tall if blocks else 1,
        scale_GS=scale.float().T.contiguous() if blocks else None, row_O=row_O,
        scale_SG=scale.float().contiguous() if blocks and tall > 1 else None,
        rounding=rounding if fits else None, input_scale=input_scale,
        rounded_O=row_O * input_scale if row_O is not None and input_scale is not None else None,
    )  # fmt: skip
    return _readable(made)


def of_grouped(
    codes: Tensor, bits: int, scale_OG: Tensor, zero_OG: Tensor | None = None, order_I: Tensor | None = None
) -> Planes | None:
    """Unsigned codes: of 4 bits [O, H], even inputs in the low half, or of 8 [O, I]. A value is (code - zero) * scale, the zero
    by default 8 or 128. None where kernels cannot read it."""
    middle = 1 << (bits - 1)
    numbers_OI = (_nibbles(codes) if bits == 4 else codes).to(torch.int16) - middle
    offset_OG = None
    if zero_OG is not None and bool((zero_OG != middle).any()):
        offset_OG = (middle - zero_OG.float()) * scale_OG.float()
    return of_numbers(numbers_OI.to(torch.int8), scale_OG, offset_OG, four=bits == 4, order_I=order_I)


def of_numbers(
    numbers_OI: Tensor, scale_OG: Tensor, offset_OG: Tensor | None = None, *, four: bool, order_I: Tensor | None = None
) -> Planes | None:
    """int8 numbers, of four bits where `four`: -8 to 7. A value is number * scale + offset. None where kernels cannot read it."""
    inputs, scale_OG = numbers_OI.shape[1], _narrow(scale_OG)
    whole = scale_OG.shape[1] == 1 and offset_OG is None
    group = 0 if whole else inputs // scale_OG.shape[1]
    pair = pair_of(inputs, group) if four else 0
    codes = (numbers_OI.to(torch.int16) + 8).to(torch.uint8) if pair else numbers_OI.contiguous().view(torch.uint8)
    made = Planes(
        "uint4" if pair else "int8", inputs, _paired(codes, pair) if pair else codes, pair=pair, group=group,
        scale_GS=None if whole else scale_OG.T.contiguous(), row_O=scale_OG[:, 0].float().contiguous() if whole else None,
        offset_GS=None if offset_OG is None else offset_OG.to(scale_OG.dtype).T.contiguous(),
        order_I=None if order_I is None else order_I.int(),
    )  # fmt: skip
    return _readable(made)


def of_coded(codes_OH: Tensor, table_16: Tensor, scale_OG: Tensor, row_O: Tensor | None = None) -> Planes | None:
    """Four-bit codes into a table, even inputs in the low half. Scales are floats, float8_e4m3fn, or the exponents of e8m0 as
    uint8; row_O are more of them, for whole outputs. None where kernels cannot read it."""
    inputs = 2 * codes_OH.shape[1]
    group = inputs // scale_OG.shape[1]
    pair = pair_of(inputs, group)
    if not pair:
        return None
    if scale_OG.dtype == torch.uint8:
        scale_OG = torch.exp2(scale_OG.float() - 127.0).to(torch.bfloat16)
    elif scale_OG.dtype != torch.float8_e4m3fn:
        scale_OG = _narrow(scale_OG)
    simple = bool((table_16.cpu() == torch.tensor(E2M1)).all())
    made = Planes(
        "e2m1" if simple else "table", inputs, _paired(_nibbles(codes_OH), pair), pair=pair, group=group,
        scale_GS=scale_OG.T.contiguous(), row_O=None if row_O is None else row_O.float().contiguous(),
        table=None if simple else table_16.float().to(codes_OH.device),
    )  # fmt: skip
    return _readable(made)


def pair_of(num_inputs: int, group: int) -> int:
    """How far apart the columns may lie that share a byte, 0 where they can not."""
    pair = _MOST_APART
    while pair >= _LEAST_RUN and (num_inputs % (2 * pair) or (group and group % pair)):
        pair //= 2
    return pair if pair >= _LEAST_RUN else 0


def _readable(made: Planes) -> Planes | None:
    """None unless runs of columns are long enough. Groups are whole, but for the last of blocks."""
    if made.slice < _LEAST_RUN:
        return None
    return made._replace(arrived=torch.zeros(MOST_TILES, dtype=torch.int32, device=made.codes_OB.device))


def _narrow(scale: Tensor) -> Tensor:
    """As float16 where that is exact: kernels are compiled ahead for what is usual."""
    half = scale.half()
    return half if torch.equal(half.float(), scale.float()) else scale


def _nibbles(codes_OH: Tensor) -> Tensor:
    """A byte for each code, in the order of the inputs."""
    return torch.stack((codes_OH & 0xF, codes_OH >> 4), dim=-1).flatten(1)


def _paired(codes_OI: Tensor, pair: int) -> Tensor:
    flat = codes_OI.view(len(codes_OI), -1, 2, pair)
    return (flat[:, :, 0] | flat[:, :, 1] << 4).flatten(1).contiguous()
