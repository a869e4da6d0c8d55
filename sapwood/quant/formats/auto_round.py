"""AutoRound's own checkpoints (`quant_method: auto-round`): packed as GPTQ's or AWQ's, which the section says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.quant.base import Choice, Method
from sapwood.quant.formats import awq, gptq
from sapwood.quant.formats.base import PLAIN, Section, by_module, matches

_GPTQ, _AWQ = ("auto_round:auto_gptq", "auto_round:gptq", "auto_round"), ("auto_round:auto_awq", "auto_round:awq")


def read(section: Mapping[str, Any]) -> Choice:
    s = Section(section)
    packing = s.get("packing_format", *_GPTQ, *_AWQ, default=_GPTQ[0])
    blocks = s.get("block_name_to_quantize", default=[])
    blocks = blocks.split(",") if isinstance(blocks, str) else blocks
    extra: Mapping[str, Mapping[str, Any]] = s.get("extra_config", default={})
    everywhere = _method(s, packing)
    own = {
        name: _method(Section({**section, **fields}, f"extra_config.{name}"), packing) for name, fields in extra.items()
    }

    def method_of(name: str) -> Method:
        for pattern, method in own.items():
            if matches(name, pattern):
                return method
        return everywhere if not blocks or any(matches(name, block) for block in blocks) else PLAIN

    return by_module(method_of)


def _method(s: Section, packing: str) -> Method:
    if int(s.get("bits")) >= 16:
        return PLAIN
    s.get("data_type", "int", default="int")
    symmetric, group = bool(s.get("sym", default=True)), int(s.get("group_size", default=128))
    if packing in _AWQ:
        s.get("bits", 4)
        return awq.method(group, zeros=True)  # which are stored even where all are the same
    return gptq.method(s.get("bits", 4, 8), group, symmetric=symmetric, ordered=False, offset=1)
