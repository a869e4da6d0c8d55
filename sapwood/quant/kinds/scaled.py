"""Weights of eight bits with scales: float8 or int8.

Suffix legend: T tokens, I inputs, O outputs, B blocks of 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.arch.parts import Linear
from sapwood.kernels import Kernels
from sapwood.kernels.planes import Planes, of_scaled
from sapwood.quant.kinds.base import Fields, Kind, Turn, joined, kept, shaped

Scales = Literal["tensor", "row", "block"]
"""What shares a scale: all weights of a part, those of an output, or 128 by 128 of them."""

Inputs = Literal["token", "tensor", "block"]
"""How inputs are rounded: with a scale for each token, with one that the checkpoint has, or for 128 inputs of a token."""

BLOCK = 128
MOST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""The largest value of each dtype that weights and inputs are rounded to."""

_LEAST = 1e-10  # of a scale: rows of zeros have one too
_INPUTS = {
    None: "inputs as they are",
    "token": "inputs rounded token by token",
    "tensor": "inputs rounded with the checkpoint's scale",
    "block": "inputs rounded 128 at a time",
}
_SCALES = {"tensor": "a scale each", "row": "a scale an output", "block": "a scale for 128 by 128"}


@dataclass(frozen=True)
class ScaledForm:
    values: torch.dtype
    scales: Scales
    inputs: Inputs | None = None

    @property
    def shown(self) -> str:
        name = "int8" if self.values == torch.int8 else "fp8"
        return f"{name} weights with {_SCALES[self.scales]}, {_INPUTS[self.inputs]}"

    def make(self, part: Linear, device: torch.device, dtype: torch.dtype, kernels: Kernels, turn: Turn) -> Scaled:
        return Scaled(self, part, device, dtype, kernels, turn)


class Scaled(Kind):
    """`values` [O, I]; `scale` float32 [1, 1], [O, 1] or [ceil(O / 128), ceil(I / 128)], or [O, ceil(I / 128)] where the parts of
    a Linear do not fill blocks; `input_scale` float32 [] where inputs are rounded with it.

    Of a part: `values`, `scale` [] or [size] or the blocks', `input_scale`.
    """

    values: Tensor
    scale: Tensor

    def __init__(
        self,
        form: ScaledForm,
        part: Linear,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels,
        turn: Turn,
    ) -> None:
        super().__init__(part, device, dtype, kernels, turn)
        self.form = form
        self.input_scale: Tensor | None = None

    @property
    def inputs(self) -> Inputs | None:
        """How inputs are rounded, None: not at all."""
        return self.form.inputs

    def fill(self, parts: Sequence[Fields]) -> None:
        sizes = [part.size for part in self.part.parts]
        self.values = kept(joined(parts, "values", sizes, self.part.inp))
        self.scale = kept(self._scale(parts, sizes).float())
        if self.inputs == "tensor":
            # Parts of one Linear have the same inputs, hence nearly always the same scale; the largest cuts nothing off.
            scales = [fields["input_scale"].float().max() for fields in parts]
            self.input_scale = kept(torch.stack(scales).max())

    def _scale(self, parts: Sequence[Fields], sizes: Sequence[int]) -> Tensor:
        found = [fields["scale"] for fields in parts]
        if self.form.scales == "tensor":
            found = [scale.reshape(1, 1) for scale in found]
            if all(torch.equal(scale, found[0]) for scale in found):
                return found[0]
            return torch.cat([scale.expand(size, 1) for scale, size in zip(found, sizes, strict=True)])
        if self.form.scales == "row":
            return torch.cat([scale.reshape(size, 1) for scale, size in zip(found, sizes, strict=True)])
        columns = blocks(self.part.inp)
        found = [shaped(fields, "scale", blocks(size), columns) for fields, size in zip(parts, sizes, strict=True)]
        if any(size % BLOCK for size in sizes[:-1]):
            found = [by_row(scale, size) for scale, size in zip(found, sizes, strict=True)]
        return torch.cat(found)

    def made_up(self, size: int, random: torch.Generator) -> Fields:
        most = MOST[self.form.values]
        values_OI = torch.empty(size, self.part.inp, device=self.device)
        values_OI.normal_(std=most / 4, generator=random).clamp_(-most, most)
        shape = {"tensor": (), "row": (size,), "block": (blocks(size), blocks(self.part.inp))}[self.form.scales]
        return {
            "values": values_OI.to(self.form.values),
            "scale": torch.full(shape, 0.02 / (most / 4), device=self.device),
            "input_scale": torch.tensor(8.0 / most, device=self.device),
        }

    def lay_out(self) -> Planes | None:
        return of_scaled(self.values, self.scale, self.inputs, self.input_scale)

    def dequantised(self) -> Tensor:
        num_outputs, num_inputs = self.part.out, self.part.inp
        scale = self.scale
        if self.form.scales == "block":
            if len(scale) != num_outputs:
                scale = by_row(scale, num_outputs)
            scale = scale.repeat_interleave(BLOCK, dim=1)[:, :num_inputs]
        return self.values.float() * scale

    def rounded(self, x_TI: Tensor) -> Tensor:
        if self.inputs is None:
            return x_TI
        values, scale = round_inputs(x_TI, self.form.values, self.inputs, self.input_scale)
        wide = values.float() * (
            scale.repeat_interleave(BLOCK, dim=1)[:, : x_TI.shape[1]] if self.inputs == "block" else scale
        )
        return wide.to(x_TI.dtype)


def blocks(size: int) -> int:
    return -(-size // BLOCK)


def by_row(scale_BX: Tensor, size: int) -> Tensor:
    """A scale for each output where one is for 128 of them."""
    return scale_BX.repeat_interleave(BLOCK, dim=0)[:size]


def round_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values to the nearest that the dtype has."""
    most = MOST[dtype]
    values = values.clamp(-most, most)
    return (values.round() if dtype == torch.int8 else values).to(dtype)


def scale_of(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale with which the largest of what is rounded becomes the dtype's largest."""
    return (largest / MOST[dtype]).clamp(min=_LEAST)


def round_inputs(x_TI: Tensor, dtype: torch.dtype, inputs: Inputs, input_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """values_TI of the dtype, and their scale: float32 [T, 1], [] or [T, ceil(I / 128)]."""
    x_TI = x_TI.float()
    if inputs == "tensor":
        assert input_scale is not None
        return round_to(x_TI / input_scale, dtype), input_scale
    if inputs == "token":
        scale_T1 = scale_of(x_TI.abs().amax(dim=1, keepdim=True), dtype)
        return round_to(x_TI / scale_T1, dtype), scale_T1
    count = x_TI.shape[1]
    x_TBI = F.pad(x_TI, (0, blocks(count) * BLOCK - count)).unflatten(1, (-1, BLOCK))
    scale_TB = scale_of(x_TBI.abs().amax(dim=2), dtype)
    return round_to(x_TBI / scale_TB[..., None], dtype).flatten(1)[:, :count], scale_TB
