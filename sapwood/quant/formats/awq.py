"""AWQ's checkpoints (`quant_method: awq`, version gemm): columns of outputs, eight to a word and interleaved.

Suffix legend: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch

from sapwood.quant.base import Choice, Method
from sapwood.quant.formats.base import IN, OUT, Cut, Quantised, Raw, Section, excepting, taken_apart, want
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.grouped import GroupedForm

_INTERLEAVED = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word, from below, the i-th of its outputs is


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section)
    version = str(s.get("version", default="gemm")).lower()
    if version != "gemm":
        raise s.wrong("version", "only gemm can be read: pack the weights so, as AutoAWQ does by default")
    s.get("bits", 4)
    group = s.get("group_size", default=128)
    return excepting(method(group, zeros=bool(s.get("zero_point", default=True))), s.names("modules_to_not_convert"))


@cache  # equal ones are one, so that a Linear's parts are seen to have the same
def method(group: int, *, zeros: bool) -> Method:
    """`group` inputs share a scale, -1: all."""
    form = GroupedForm(4, None if group == -1 else group, zeros=zeros)
    groups, words = Cut("in", 1 << 30 if group == -1 else group), Cut("out", 8)
    raws = (
        Raw("qweight", (IN, words)),
        Raw("scales", (groups, OUT)),
        Raw("qzeros", (groups, words), optional=not zeros),
    )
    return Quantised(form, raws, partial(_turn, form))


def _turn(form: GroupedForm, raw: Fields) -> Fields:
    codes_IO = taken_apart(want(raw, "qweight", torch.int32), 4, dim=1, order=_INTERLEAVED)
    fields = {"codes": codes_IO.T, "scale": raw["scales"].T}
    if form.zeros:
        fields["zero"] = taken_apart(want(raw, "qzeros", torch.int32), 4, dim=1, order=_INTERLEAVED).T
    return fields
