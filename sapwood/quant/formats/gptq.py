"""GPTQ's checkpoints (`quant_method: gptq`): rows of inputs, several to a word, with or without an order of their own.

Suffix legend: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch

from sapwood.base.errors import ModelError
from sapwood.quant.base import Choice, Method
from sapwood.quant.formats.base import (
    IN,
    OUT,
    Cut,
    Quantised,
    Raw,
    Section,
    excepting,
    sorted_by_group,
    taken_apart,
    want,
)
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.grouped import Bits, GroupedForm


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section)
    if s.get("dynamic"):
        raise s.wrong("dynamic", "modules with settings of their own cannot be read: quantise with the same for all")
    layout = s.get("checkpoint_format", "gptq", "gptq_v2", default="gptq")
    found = method(
        s.get("bits", 4, 8),
        s.get("group_size", default=128),
        symmetric=bool(s.get("sym", default=True)),
        ordered=bool(s.get("desc_act", default=False)),
        offset=1 if layout == "gptq" else 0,
    )
    heads = bool(s.get("lm_head", default=False))
    return excepting(found, s.names("modules_to_not_convert"), heads=heads, routers=False)


@cache  # equal ones are one, so that a Linear's parts are seen to have the same
def method(bits: Bits, group: int, *, symmetric: bool, ordered: bool, offset: int) -> Method:
    """`group` inputs share a scale, -1: all. Zero points are stored less `offset`."""
    form = GroupedForm(bits, None if group == -1 else group, zeros=not symmetric, ordered=ordered)
    each, groups = 32 // bits, Cut("in", 1 << 30 if group == -1 else group)
    raws = (
        Raw("qweight", (Cut("in", each), OUT)),
        Raw("scales", (groups, OUT)),
        Raw("qzeros", (groups, Cut("out", each)), optional=symmetric),
        Raw("g_idx", None if ordered else (IN,), optional=not ordered),
        Raw("bias", (OUT,), optional=True),
    )
    return Quantised(form, raws, partial(_turn, form, offset))


def _turn(form: GroupedForm, offset: int, raw: Fields) -> Fields:
    bits = form.bits
    codes_OI = taken_apart(want(raw, "qweight", torch.int32), bits, dim=0).T
    fields = {"codes": codes_OI, "scale": raw["scales"].T}
    if "qzeros" in raw:
        zero_GO = (taken_apart(want(raw, "qzeros", torch.int32), bits, dim=1) + offset) & ((1 << bits) - 1)
        if form.zeros:
            fields["zero"] = zero_GO.T
        elif (zero_GO != 1 << (bits - 1)).any():
            raise ModelError(
                "Weights that are symmetric by their config have other zero points: it should say sym = false."
            )
    if form.ordered:
        fields |= sorted_by_group(codes_OI, raw["g_idx"])
    elif "g_idx" in raw and (raw["g_idx"].diff() < 0).any():
        raise ModelError(
            "The weights' inputs have an order (g_idx) that their config denies: it should say desc_act = true."
        )
    return fields | ({"bias": raw["bias"]} if "bias" in raw else {})
