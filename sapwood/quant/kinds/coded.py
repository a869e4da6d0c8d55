"""Four-bit codes into a table of 16 values: NF4, FP4, NVFP4 and MXFP4.

Suffix legend: I inputs, O outputs, G groups of inputs, H bytes of a row of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sapwood.arch.parts import Linear
from sapwood.base.errors import ModelError
from sapwood.kernels import Kernels
from sapwood.kernels.planes import E2M1, Planes, of_coded
from sapwood.quant.kinds.base import Fields, Kind, Turn, joined, kept, shaped, unpacked

ScaleForm = Literal["float32", "e4m3", "e8m0"]

_SHOWN = {"float32": "float32", "e4m3": "fp8", "e8m0": "power-of-two"}


@dataclass(frozen=True)
class CodedForm:
    """`name` is what the table is called; the table itself comes with the weights."""

    name: str
    group: int
    scale: ScaleForm

    @property
    def shown(self) -> str:
        return f"{self.name} weights with a {_SHOWN[self.scale]} scale for {self.group} inputs, inputs as they are"

    def make(self, part: Linear, device: torch.device, dtype: torch.dtype, kernels: Kernels, turn: Turn) -> Coded:
        return Coded(self, part, device, dtype, kernels, turn)


class Coded(Kind):
    """value = table[code] * scale * factor.

    `codes_OH`: uint8 [O, I / 2], the even input in the low nibble; `table_16` float32; `scale_OG` float32, or bytes (uint8) of
    float8 e4m3fn or e8m0; `factor` float32 [1, 1], or [O, 1] where parts have different ones. Of a part: `codes`, `table`,
    `scale`, `factor` [].
    """

    codes_OH: Tensor
    table_16: Tensor
    scale_OG: Tensor
    factor: Tensor

    def __init__(
        self,
        form: CodedForm,
        part: Linear,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels,
        turn: Turn,
    ) -> None:
        super().__init__(part, device, dtype, kernels, turn)
        self.form, self.group = form, form.group
        if part.inp % self.group:
            raise ModelError(
                f"{part.parts[0].name}: {part.inp} inputs do not fill groups of {self.group}, which is not supported."
            )

    def fill(self, parts: Sequence[Fields]) -> None:
        sizes = [part.size for part in self.part.parts]
        self.codes_OH = kept(joined(parts, "codes", sizes, self.part.inp // 2))
        self.scale_OG = kept(joined(parts, "scale", sizes, self.part.inp // self.group))
        self.table_16 = kept(shaped(parts[0], "table", 16).float())
        factors = [fields["factor"].float().reshape(1, 1) for fields in parts]
        if any(not torch.equal(factor, factors[0]) for factor in factors):
            factors = [factor.expand(size, 1) for factor, size in zip(factors, sizes, strict=True)]
            self.factor = kept(torch.cat(factors))
        else:
            self.factor = kept(factors[0])

    def made_up(self, size: int, random: torch.Generator) -> Fields:
        num_bytes, num_groups = self.part.inp // 2, self.part.inp // self.group
        codes_OH = torch.randint(256, (size, num_bytes), device=self.device, generator=random, dtype=torch.uint8)
        ones = torch.ones(size, num_groups, device=self.device)
        return {
            "codes": codes_OH,
            "table": torch.tensor(E2M1, device=self.device),
            "scale": stored_scale(ones, self.form.scale),
            "factor": torch.tensor(0.006, device=self.device),
        }

    def lay_out(self) -> Planes | None:
        scale_OG = self.scale_OG.view(torch.float8_e4m3fn) if self.form.scale == "e4m3" else self.scale_OG
        return of_coded(self.codes_OH, self.table_16, scale_OG, self.factor.expand(self.part.out, 1).flatten())

    def dequantised(self) -> Tensor:
        values_OGI = self.table_16[unpacked(self.codes_OH).int()].unflatten(1, (-1, self.group))
        scale_OG = read_scale(self.scale_OG, self.form.scale) * self.factor
        return (values_OGI * scale_OG[..., None]).flatten(1)


def read_scale(scale: Tensor, form: ScaleForm) -> Tensor:
    """Scales in float32."""
    if form == "float32":
        return scale
    if form == "e4m3":
        return scale.view(torch.float8_e4m3fn).float()
    return torch.exp2(scale.float() - 127)


def stored_scale(scale: Tensor, form: ScaleForm) -> Tensor:
    """float32 scales as they are stored: a power of two becomes its exponent, rounded up, so that nothing is cut off."""
    if form == "float32":
        return scale
    if form == "e4m3":
        return scale.to(torch.float8_e4m3fn).view(torch.uint8)
    return (torch.log2(scale).ceil() + 127).clamp(0, 254).to(torch.uint8)
