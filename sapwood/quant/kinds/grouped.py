"""Integer codes of four or eight bits, whose scales and zero points groups of inputs share.

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
from sapwood.kernels.planes import Planes, of_grouped
from sapwood.quant.kinds.base import Fields, Kind, Turn, joined, kept, packed, unpacked

Bits = Literal[4, 8]


@dataclass(frozen=True)
class GroupedForm:
    """`group` inputs share a scale; None: all of an output's do."""

    bits: Bits
    group: int | None
    zeros: bool = False
    ordered: bool = False

    @property
    def shown(self) -> str:
        shared = "a scale an output" if self.group is None else f"a scale for {self.group} inputs"
        zeros, order = " and a zero point" if self.zeros else "", ", inputs reordered" if self.ordered else ""
        return f"{self.bits}-bit integer weights with {shared}{zeros}{order}, inputs as they are"

    def make(self, part: Linear, device: torch.device, dtype: torch.dtype, kernels: Kernels, turn: Turn) -> Grouped:
        return Grouped(self, part, device, dtype, kernels, turn)


class Grouped(Kind):
    """value = (code - zero) * scale, and column j of the codes is input `order_I[j]`.

    `codes`: uint8 [O, I / 2], the even input in the low nibble, or [O, I]; `scale_OG` float32 or half; `zero_OG` uint8 codes,
    or None: 8 or 128; `order_I` int32 or None. Of a part: `codes` [size, I] one to a byte, `scale`, `zero`, `order`.
    """

    codes: Tensor
    scale_OG: Tensor

    def __init__(
        self,
        form: GroupedForm,
        part: Linear,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels,
        turn: Turn,
    ) -> None:
        super().__init__(part, device, dtype, kernels, turn)
        self.form = form
        self.zero_OG: Tensor | None = None
        self.order_I: Tensor | None = None
        self.bits, self.group = form.bits, part.inp if form.group is None else form.group
        if part.inp % self.group or part.inp % 2:
            raise ModelError(
                f"{part.parts[0].name}: {part.inp} inputs do not fill groups of {self.group}, which is not supported."
            )

    def fill(self, parts: Sequence[Fields]) -> None:
        sizes = [part.size for part in self.part.parts]
        num_groups = self.part.inp // self.group
        codes_OI = joined(parts, "codes", sizes, self.part.inp)
        self.codes = kept(packed(codes_OI) if self.bits == 4 else codes_OI)
        self.scale_OG = kept(joined(parts, "scale", sizes, num_groups))
        if self.form.zeros:
            self.zero_OG = kept(joined(parts, "zero", sizes, num_groups))
        if self.form.ordered:
            order_I = parts[0]["order"]
            if any(not torch.equal(fields["order"], order_I) for fields in parts):
                names = ", ".join(part.name for part in self.part.parts)
                raise ModelError(
                    f"{names} have inputs in different orders (g_idx), and are one product here: quantise without act-order."
                )
            self.order_I = kept(order_I.int())

    def made_up(self, size: int, random: torch.Generator) -> Fields:
        num_inputs, num_groups, most = self.part.inp, self.part.inp // self.group, 1 << self.bits
        codes_OI = torch.randint(most, (size, num_inputs), device=self.device, generator=random, dtype=torch.uint8)
        return {
            "codes": codes_OI,
            "scale": torch.full((size, num_groups), 0.07 / most, device=self.device, dtype=self.dtype),
            "zero": most // 2
            - torch.randint(2, (size, num_groups), device=self.device, generator=random, dtype=torch.uint8),
            "order": torch.arange(num_inputs, device=self.device, dtype=torch.int32),
        }

    def lay_out(self) -> Planes | None:
        return of_grouped(self.codes, self.bits, self.scale_OG, self.zero_OG, self.order_I)

    def dequantised(self) -> Tensor:
        codes_OI = unpacked(self.codes) if self.bits == 4 else self.codes
        codes_OGI = codes_OI.float().unflatten(1, (-1, self.group))
        zero_OG = float(1 << (self.bits - 1)) if self.zero_OG is None else self.zero_OG.float()[..., None]
        weight_OI = ((codes_OGI - zero_OG) * self.scale_OG.float()[..., None]).flatten(1)
        if self.order_I is None:
            return weight_OI
        return torch.empty_like(weight_OI).index_copy_(1, self.order_I.long(), weight_OI)
