"""Float8 checkpoints of Hugging Face (`quant_method: fp8`): blocks of 128 by 128 as DeepSeek has them, or a scale each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sapwood.base.errors import ModelError
from sapwood.quant.base import Choice
from sapwood.quant.formats.base import IN, ONE, OUT, Cut, Quantised, Raw, Section, excepting, want
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.scaled import BLOCK, ScaledForm

FP8 = torch.float8_e4m3fn
_SCALES = {
    "weight_scale": "scale",
    "weight_scale_inv": "scale",
    "input_scale": "input_scale",
    "activation_scale": "input_scale",
}
_BLOCKS = (Cut("out", BLOCK), Cut("in", BLOCK))


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section)
    s.get("fmt", "e4m3", "float8_e4m3fn", default="e4m3")
    scheme = s.get("activation_scheme", "dynamic", "static", default="dynamic")
    excepted = s.names("modules_to_not_convert", "ignored_layers")
    if (size := s.get("weight_block_size")) is None:
        inputs = "tensor" if scheme == "static" else "token"
        raws = tuple(Raw(name, optional=True, same=True) for name in _SCALES)
        form = ScaledForm(FP8, "tensor", inputs)  # type: ignore[arg-type]
        return excepting(Quantised(form, (Raw("weight", (OUT, IN)), *raws), _turn), excepted, routers=False)
    if list(size) != [BLOCK, BLOCK] or scheme == "static":
        raise s.wrong("weight_block_size", f"blocks have to be of {BLOCK} by {BLOCK}, with a dynamic activation_scheme")
    raws = (Raw("weight", (OUT, IN)), Raw("weight_scale_inv", _BLOCKS))
    return excepting(Quantised(ScaledForm(FP8, "block", "block"), raws, _turn), excepted, routers=False)


def read_fbgemm(section: Mapping[str, Any]) -> Choice:
    """`fbgemm_fp8`: a scale for each output. Its bound of inputs, beyond which they would be cut off, is not applied."""
    s = Section(section)
    raws = (Raw("weight", (OUT, IN)), Raw("weight_scale", (OUT, ONE)), Raw("input_scale_ub", optional=True, same=True))
    method = Quantised(ScaledForm(FP8, "row", "token"), raws, _turn)
    return excepting(method, s.names("modules_to_not_convert"))


def _turn(raw: Fields) -> Fields:
    """Scales by whichever of their names."""
    fields = {"values": want(raw, "weight", FP8)}
    for name, tensor in raw.items():
        if name in _SCALES:
            fields[_SCALES[name]] = tensor
    if "scale" not in fields:
        raise ModelError("A module's float8 weight has neither weight_scale nor weight_scale_inv beside it.")
    return fields
