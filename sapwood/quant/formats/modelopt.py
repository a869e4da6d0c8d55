"""NVIDIA's ModelOpt (`quant_method: modelopt`): FP8 and NVFP4."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from sapwood.quant.base import Choice, Method
from sapwood.quant.formats.base import IN, OUT, PLAIN, Cut, Quantised, Raw, Section, by_module, e2m1, excepting, want
from sapwood.quant.formats.compressed_tensors import turn_scaled
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.coded import CodedForm
from sapwood.quant.kinds.scaled import ScaledForm

FP8 = torch.float8_e4m3fn
_NVFP4_GROUP = 16
_turn_fp8 = partial(turn_scaled, FP8)


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section.get("quantization") or section)
    excepted = s.names("ignore", "exclude_modules")
    if s.get("quant_algo") == "MIXED_PRECISION":
        layers = s.get("quantized_layers", default={})
        own = {name: method_of(Section(layer, f"quantized_layers.{name}")) for name, layer in layers.items()}
        return by_module(lambda name: own.get(name, PLAIN))
    return excepting(method_of(s), excepted, heads=True)


def method_of(s: Section) -> Method:
    """By `quant_algo`. Raises ModelError."""
    algorithm = s.get("quant_algo", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4")
    weight = Raw("weight", (OUT, IN))
    if algorithm == "FP8":
        return Quantised(
            ScaledForm(FP8, "tensor", "tensor"),
            (weight, Raw("weight_scale", same=True), Raw("input_scale", same=True)),
            _turn_fp8,
        )
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        return Quantised(ScaledForm(FP8, "row", "token"), (weight, Raw("weight_scale", (OUT,))), _turn_fp8)
    group = s.get("group_size", default=_NVFP4_GROUP)
    raws = (
        Raw("weight", (OUT, Cut("in", 2))),
        Raw("weight_scale", (OUT, Cut("in", group))),
        Raw("weight_scale_2", same=True),
        Raw("input_scale", optional=True, same=True),
    )
    return Quantised(CodedForm("NVFP4", group, "e4m3"), raws, _turn_nvfp4)


def _turn_nvfp4(raw: Fields) -> Fields:
    scale = want(raw, "weight_scale", FP8).view(torch.uint8)
    return e2m1(want(raw, "weight", torch.uint8), scale, raw["weight_scale_2"])
