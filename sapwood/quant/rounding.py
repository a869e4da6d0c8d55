"""Plain weights that are rounded while they are loaded, a Linear at a time and on the device.

Suffix legend: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from sapwood.arch.experts import Stack
from sapwood.arch.parts import Linear, Place, StoredTensor
from sapwood.quant.base import Choice, Method, linear_at
from sapwood.quant.formats.base import PLAIN, Quantised, e2m1
from sapwood.quant.kinds.base import Fields, packed
from sapwood.quant.kinds.coded import CodedForm, read_scale, stored_scale
from sapwood.quant.kinds.grouped import GroupedForm
from sapwood.quant.kinds.scaled import MOST, ScaledForm, round_inputs

_GROUPS = (128, 32)  # of int4, the first that a row is full of
_NVFP4_GROUP = 16
_MOST_E2M1 = 6.0
_HALFWAY = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Between the values of e2m1 that are not negative."""


@dataclass(frozen=True)
class Rounding(Quantised):
    """The Method of plain weights that become a kind when they are read: a Linear's own tensors, and no others."""

    @property
    def shown(self) -> str:
        return f"{self.form.shown}; rounded from plain ones"

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        """The plain ones, the weight of each part by itself, cut between groups."""
        found, index = [], 0
        for tensor in linear_at(place).tensors():
            if tensor.param == "weight":
                rows, columns = tensor.axes or ()
                if columns.unit is not None and (group := getattr(self.form, "group", None)):
                    columns = replace(columns, unit=math.lcm(columns.unit, group))
                tensor = replace(tensor, param=f"{index}.weight", axes=(replace(rows, joined=False), columns))
                index += 1
            found.append(tensor)
        return found


def rounding(scheme: str, otherwise: Choice) -> Choice:
    """Linears within the blocks and experts are rounded, where their inputs fill groups. Heads are as `otherwise` has them,
    and so is what every rank has whole: routers, which choose, and are small."""

    def choice(place: Place) -> Method:
        linear = linear_at(place)
        if place.path == "head" or (linear.split is None and not isinstance(place.leaf, Stack)):
            return otherwise(place)
        return _SCHEMES[scheme](linear) or PLAIN

    return choice


def _eight_bits(values: torch.dtype, linear: Linear) -> Method:
    return Rounding(ScaledForm(values, "row", "token"), (), partial(_rounded_rows, values))


def _rounded_rows(values: torch.dtype, raw: Fields) -> Fields:
    values_OI, scale_O1 = round_inputs(raw["weight"], values, "token", None)
    return {"values": values_OI, "scale": scale_O1}


def _int4(linear: Linear) -> Method | None:
    group = next((size for size in _GROUPS if linear.inp % size == 0), None)
    return None if group is None else Rounding(GroupedForm(4, group, zeros=True), (), partial(_rounded_groups, group))


def _rounded_groups(group: int, raw: Fields) -> Fields:
    weight_OGI = raw["weight"].unflatten(1, (-1, group)).float()
    least, most = weight_OGI.amin(dim=2).clamp(max=0), weight_OGI.amax(dim=2).clamp(min=0)
    scale_OG = ((most - least) / 15).clamp(min=1e-8)
    if raw["weight"].dtype != torch.float32:
        scale_OG = scale_OG.to(raw["weight"].dtype)  # the codes are to fit what is kept
    wide_OG = scale_OG.float()
    zero_OG = (-least / wide_OG).round().clamp(0, 15)
    codes_OGI = ((weight_OGI / wide_OG[..., None]).round() + zero_OG[..., None]).clamp(0, 15)
    return {"codes": codes_OGI.flatten(1).to(torch.uint8), "scale": scale_OG, "zero": zero_OG.to(torch.uint8)}


def _nvfp4(linear: Linear) -> Method | None:
    if linear.inp % _NVFP4_GROUP:
        return None
    return Rounding(CodedForm("NVFP4", _NVFP4_GROUP, "e4m3"), (), _rounded_to_nvfp4)


def _rounded_to_nvfp4(raw: Fields) -> Fields:
    weight_OGI = raw["weight"].unflatten(1, (-1, _NVFP4_GROUP)).float()
    largest_OG = weight_OGI.abs().amax(dim=2)
    factor = (largest_OG.max() / (_MOST_E2M1 * MOST[torch.float8_e4m3fn])).clamp(min=1e-12)
    scale_OG = stored_scale(largest_OG / _MOST_E2M1 / factor, "e4m3")
    wide_OG = (read_scale(scale_OG, "e4m3") * factor).clamp(min=1e-20)
    return e2m1(packed(e2m1_codes((weight_OGI / wide_OG[..., None]).flatten(1))), scale_OG, factor)


def e2m1_codes(values: Tensor) -> Tensor:
    """The uint8 codes of the nearest values of e2m1."""
    nearest = torch.bucketize(values.abs(), torch.tensor(_HALFWAY, device=values.device))
    return (nearest + 8 * (values < 0)).to(torch.uint8)


_SCHEMES: Mapping[str, Callable[[Linear], Method | None]] = MappingProxyType({
    "fp8": partial(_eight_bits, torch.float8_e4m3fn),
    "int8": partial(_eight_bits, torch.int8),
    "int4": _int4,
    "nvfp4": _nvfp4,
})  # fmt: skip
"""By what `--quantization` says. The CPU's own kernels have int8 and int4 of their own (`quant.packed`)."""
