"""bitsandbytes (`quant_method: bitsandbytes`): NF4 and FP4, with scales that may be quantised themselves, and int8.

Suffix legend: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sapwood.base.errors import ModelError
from sapwood.quant.base import Choice, Method
from sapwood.quant.formats.base import IN, OUT, Quantised, Raw, Section, excepting, want
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.coded import CodedForm
from sapwood.quant.kinds.scaled import MOST, ScaledForm

_GROUP = 64


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section)
    if s.get("load_in_8bit", default=False):
        method = _int8()
    else:
        s.get("load_in_4bit", True)
        s.get("bnb_4bit_quant_storage", "uint8", default="uint8")
        method = _four_bits(s.get("bnb_4bit_quant_type", "nf4", "fp4", default="fp4"))
    return excepting(method, s.names("llm_int8_skip_modules"))


def _int8() -> Method:
    """Inputs stay as they are, where the tool rounds them, but for outliers."""
    raws = (Raw("weight", (OUT, IN)), Raw("SCB", (OUT,)), Raw("weight_format", optional=True, same=True))
    return Quantised(ScaledForm(torch.int8, "row"), raws, _turn_int8)


def _turn_int8(raw: Fields) -> Fields:
    if "weight_format" in raw and int(raw["weight_format"]):
        raise ModelError("bitsandbytes' int8 weights are laid out for a kernel (weight_format): save them as rows.")
    return {"values": want(raw, "weight", torch.int8), "scale": raw["SCB"].float() / MOST[torch.int8]}


def _four_bits(name: str) -> Method:
    ends = ("absmax", "quant_map", f"quant_state.bitsandbytes__{name}")
    nested = ("nested_absmax", "nested_quant_map")
    raws = [
        Raw("weight"),
        *(Raw(f"weight.{end}") for end in ends),
        *(Raw(f"weight.{end}", optional=True) for end in nested),
    ]
    return Quantised(CodedForm(name, _GROUP, "float32"), tuple(raws), partial(_turn_four_bits, ends[-1]))


def _turn_four_bits(state_name: str, raw: Fields) -> Fields:
    state = json.loads(bytes(raw[f"weight.{state_name}"].tolist()))
    num_outputs, num_inputs = state["shape"]
    if state["blocksize"] != _GROUP or num_inputs % _GROUP:
        raise ModelError(
            f"bitsandbytes' weights of {num_inputs} inputs in blocks of {state['blocksize']} cannot be read: blocks have to be "
            f"of {_GROUP}, within the rows."
        )
    codes_OH = want(raw, "weight", torch.uint8).reshape(num_outputs, num_inputs // 2)
    return {
        "codes": (codes_OH << 4) | (codes_OH >> 4),  # they have the even input in the high nibble
        "table": raw["weight.quant_map"],
        "scale": _scales(raw, state).reshape(num_outputs, -1),
        "factor": torch.ones((), device=codes_OH.device),
    }


def _scales(raw: Fields, state: Mapping[str, Any]) -> Tensor:
    scale = raw["weight.absmax"]
    if "weight.nested_absmax" not in raw:
        return scale
    outer = raw["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(scale)]
    return raw["weight.nested_quant_map"][scale.int()] * outer + state["nested_offset"]
