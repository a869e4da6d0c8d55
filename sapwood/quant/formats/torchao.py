"""torchao (`quant_method: torchao`), as transformers save it in safetensors: int8 and float8 weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from sapwood.base.errors import ModelError
from sapwood.quant.base import Choice
from sapwood.quant.formats.base import IN, OUT, Quantised, Raw, Section, excepting, want
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.scaled import ScaledForm

_VALUES = {"Int8WeightOnlyConfig": torch.int8, "Float8WeightOnlyConfig": torch.float8_e4m3fn}


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section)
    s.get("include_input_output_embeddings", False, default=False)
    kinds = s.get("quant_type", default={})
    if list(kinds) != ["default"]:
        raise s.wrong("quant_type", "modules with settings of their own cannot be read")
    kind = Section(kinds["default"], "quantization_config.quant_type.default")
    values = _VALUES[kind.get("_type", *_VALUES)]
    if kind.get("_data", default={}).get("group_size") is not None:
        raise kind.wrong("_data", "a scale has to be for an output or a tensor: leave group_size out")
    scales = "tensor" if "PerTensor" in str(kind.get("_data")) else "row"
    raws = (Raw("_weight_qdata", (OUT, IN)), Raw("_weight_scale"), Raw("_weight_zero_point", optional=True))
    method = Quantised(ScaledForm(values, scales), raws, partial(_turn, values))  # type: ignore[arg-type]
    return excepting(method, s.names("modules_to_not_convert"))


def _turn(values: torch.dtype, raw: Fields) -> Fields:
    if "_weight_zero_point" in raw and raw["_weight_zero_point"].any():
        raise ModelError("torchao's int8 weights have zero points, which cannot be read: quantise them symmetrically.")
    return {"values": want(raw, "_weight_qdata", values), "scale": raw["_weight_scale"]}
