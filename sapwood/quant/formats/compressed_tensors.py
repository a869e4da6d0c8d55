"""Checkpoints of LLM Compressor (`quant_method: compressed-tensors`): a scheme for each group of modules.

Suffix legend: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sapwood.base.errors import ModelError
from sapwood.quant.base import Choice, Method
from sapwood.quant.formats.base import (
    IN,
    ONE,
    OUT,
    PLAIN,
    Cut,
    Patterns,
    Quantised,
    Raw,
    Section,
    by_module,
    e2m1,
    matches,
    sorted_by_group,
    taken_apart,
    want,
)
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.coded import CodedForm
from sapwood.quant.kinds.grouped import GroupedForm
from sapwood.quant.kinds.scaled import BLOCK, Inputs, ScaledForm, Scales

FP8 = torch.float8_e4m3fn
_WHERE = "quantization_config.config_groups"
_INT, _FLOAT = "int", "float"
_SCALES = {"tensor": None, "row": (OUT, ONE), "block": (Cut("out", BLOCK), Cut("in", BLOCK))}


@dataclass(frozen=True)
class Scheme:
    """A group of the section: what it says of the weights and the inputs of its modules."""

    weights: Section
    inputs: Section | None
    packing: str | None


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section)
    s.get("quant_method", "compressed-tensors")
    for field in ("sparsity_config", "transform_config"):
        if (s.get(field) or {}).get("format", "dense") != "dense" or (s.get(field) or {}).get("config_groups"):
            raise s.wrong(field, "weights that are sparse or rotated cannot be read: compress without it")
    methods: list[tuple[str, Method]] = []
    for name, group in s.fields.get("config_groups", {}).items():
        method = method_of(_scheme(group, name, s.fields.get("format")))
        methods += [(str(target), method) for target in group.get("targets") or ()]
    return by_module(partial(_method_at, methods, Patterns(s.names("ignore"))))


def _method_at(methods: list[tuple[str, Method]], ignored: Patterns, name: str) -> Method:
    """Names come before patterns, and both before the class that all Linears are of."""
    if ignored.match(name):
        return PLAIN
    for means in (lambda t: t == name, lambda t: t.startswith("re:") and matches(name, t), lambda t: t == "Linear"):
        for target, method in methods:
            if means(target):
                return method
    return PLAIN


def _scheme(group: Mapping[str, Any], name: str, packing: str | None) -> Scheme:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not weights:
        raise ModelError(f"config.json: {_WHERE}.{name}.weights is missing: a group has to say how weights are stored.")
    if group.get("output_activations"):
        raise ModelError(f"config.json: {_WHERE}.{name}.output_activations is not supported; quantise without it.")
    return Scheme(
        Section(weights, f"{_WHERE}.{name}.weights"),
        Section(inputs, f"{_WHERE}.{name}.input_activations") if inputs else None,
        group.get("format") or packing,
    )


def method_of(scheme: Scheme) -> Method:
    """The method of a scheme. Raises ModelError for one that cannot be read."""
    weights = scheme.weights
    bits, kind = weights.get("num_bits", 4, 8), weights.get("type", _INT, _FLOAT, default=_INT)
    strategy = weights.get("strategy")
    if bits == 4 and kind == _FLOAT:
        return _coded(weights)
    if scheme.packing == "pack-quantized" or (kind == _INT and (bits == 4 or strategy == "group")):
        if scheme.inputs is not None:
            raise scheme.inputs.wrong("num_bits", "with weights of groups inputs have to stay as they are")
        return _grouped(weights, packed=scheme.packing == "pack-quantized")
    return _scaled(scheme, FP8 if kind == _FLOAT else torch.int8)


# --- eight bits ---


def _scaled(scheme: Scheme, values: torch.dtype) -> Method:
    weights = scheme.weights
    if not weights.get("symmetric", default=True):
        raise weights.wrong("symmetric", "weights of eight bits with a zero point are read in groups only")
    strategy = weights.get("strategy", "tensor", "channel", "block")
    scales: Scales = {"tensor": "tensor", "channel": "row", "block": "block"}[strategy]  # type: ignore[assignment]
    if strategy == "block" and list(weights.get("block_structure")) != [BLOCK, BLOCK]:
        raise weights.wrong("block_structure", f"blocks have to be of {BLOCK} by {BLOCK}")
    inputs = _inputs(scheme.inputs, values)
    raws = [
        Raw("weight", (OUT, IN)),
        Raw("weight_scale", _SCALES[scales], same=scales == "tensor"),
    ]
    raws.append(Raw("weight_zero_point", optional=True, same=True))
    if inputs == "tensor":
        raws.append(Raw("input_scale", same=True))
    return Quantised(ScaledForm(values, scales, inputs), tuple(raws), partial(turn_scaled, values))


def _inputs(inputs: Section | None, values: torch.dtype) -> Inputs | None:
    if inputs is None:
        return None
    inputs.get("num_bits", 8)
    inputs.get("type", _INT if values == torch.int8 else _FLOAT)
    inputs.get("symmetric", True, default=True)
    dynamic = inputs.get("dynamic", True, False, default=False)
    if not dynamic:
        inputs.get("strategy", "tensor", default="tensor")
        return "tensor"
    strategy = inputs.get("strategy", "token", "tensor", "group", default="token")
    if strategy == "group":
        inputs.get("group_size", BLOCK)
        return "block"
    return "token"  # one for a whole batch would make a request's answer depend on its company


def turn_scaled(values: torch.dtype, raw: Fields) -> Fields:
    _no_zeros(raw)
    fields = {"values": want(raw, "weight", values), "scale": raw["weight_scale"]}
    return fields | ({"input_scale": raw["input_scale"]} if "input_scale" in raw else {})


def _no_zeros(raw: Fields) -> None:
    """Some versions store the zero points of symmetric weights too."""
    if "weight_zero_point" in raw and raw["weight_zero_point"].float().any():
        raise ModelError(
            "Symmetric weights have a weight_zero_point that is not zero: the checkpoint contradicts its config."
        )


# --- integers in groups ---


def _grouped(weights: Section, *, packed: bool) -> Method:
    bits, symmetric = weights.get("num_bits"), weights.get("symmetric", default=True)
    strategy = weights.get("strategy", "group", "channel", "tensor")
    group = int(weights.get("group_size")) if strategy == "group" else None
    ordered = weights.get("actorder") in ("group", "dynamic", True)
    form = GroupedForm(bits, group, zeros=not symmetric, ordered=ordered)
    codes = Raw("weight_packed", (OUT, Cut("in", 32 // bits))) if packed else Raw("weight", (OUT, IN))
    shared, by = (OUT, ONE if group is None else Cut("in", group)), 32 // bits if packed else 1
    raws = [
        codes,
        Raw("weight_scale", None if strategy == "tensor" else shared),
        Raw(
            "weight_zero_point",
            None if symmetric else (Cut("out", by), shared[1]),
            optional=bool(symmetric),
            same=bool(symmetric),
        ),
        Raw("weight_shape", optional=True, same=True),
    ]
    if ordered:
        raws.append(Raw("weight_g_idx"))
    return Quantised(form, tuple(raws), partial(_turn_grouped, form))


def _turn_grouped(form: GroupedForm, raw: Fields) -> Fields:
    bits = form.bits
    if "weight_packed" in raw:
        codes_OI = taken_apart(want(raw, "weight_packed", torch.int32), bits, dim=1)
        if "weight_shape" in raw:
            codes_OI = codes_OI[:, : int(raw["weight_shape"][1])]
    else:
        codes_OI = _unsigned(want(raw, "weight", torch.int8), bits)
    size = len(codes_OI)
    scale = raw["weight_scale"]
    fields = {
        "codes": codes_OI,
        "scale": scale.reshape(size, -1) if scale.numel() > 1 else scale.reshape(1, 1).expand(size, 1),
    }
    if form.zeros:
        zero = raw["weight_zero_point"]
        zero = taken_apart(zero, bits, dim=0)[:size] if zero.dtype == torch.int32 else _unsigned(zero, bits)
        fields["zero"] = zero.reshape(fields["scale"].shape)
    if form.ordered:
        fields |= sorted_by_group(codes_OI, raw["weight_g_idx"])
    return fields


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    """Signed codes, a byte each, as those that start from 0."""
    return (codes.int() + (1 << (bits - 1))).to(torch.uint8)


# --- four bits of floating point ---


def _coded(weights: Section) -> Method:
    """Inputs, which such a section may round to four bits too, stay as they are: that is closer, and no slower here."""
    strategy = weights.get("strategy", "tensor_group", "group")
    group = int(weights.get("group_size"))
    raws: list[Raw] = [Raw("weight_packed", (OUT, Cut("in", 2))), Raw("weight_scale", (OUT, Cut("in", group)))]
    if strategy == "tensor_group":
        raws += [Raw("weight_global_scale", same=True), Raw("input_global_scale", optional=True, same=True)]
        return Quantised(CodedForm("NVFP4", group, "e4m3"), tuple(raws), _turn_nvfp4)
    weights.get("group_size", 32)
    return Quantised(CodedForm("MXFP4", 32, "e8m0"), tuple(raws), _turn_mxfp4)


def _turn_nvfp4(raw: Fields) -> Fields:
    scale = want(raw, "weight_scale", FP8).view(torch.uint8)
    return e2m1(want(raw, "weight_packed", torch.uint8), scale, 1 / raw["weight_global_scale"].float().reshape(()))


def _turn_mxfp4(raw: Fields) -> Fields:
    scale = want(raw, "weight_scale", torch.uint8, torch.float8_e8m0fnu).view(torch.uint8)
    return e2m1(want(raw, "weight_packed", torch.uint8), scale, torch.ones((), device=scale.device))
