"""What checkpoints can be quantised to. Nothing heavy is imported before one is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sapwood.base.errors import UserError

GROUPS = (128, 64, 32)
"""Inputs that share a scale in four bits: the first of which every row is full."""


@dataclass(frozen=True)
class Scheme:
    """One of LLM Compressor's, or without a `preset` four bits in groups. `calibrated`: it looks at activations; `scaled`: by AWQ
    before, which wants a GPU."""

    preset: str | None = None
    modifier: str = "QuantizationModifier"
    calibrated: bool = False
    scaled: bool = False


SCHEMES: Mapping[str, Scheme] = MappingProxyType({
    "fp8": Scheme("FP8_DYNAMIC"),  # float8, a scale an output; inputs token by token
    "fp8-block": Scheme("FP8_BLOCK"),  # float8, a scale for 128 by 128; inputs 128 at a time
    "w8a8": Scheme("W8A8"),  # int8, a scale an output; inputs token by token
    "w4a16": Scheme(),  # 4 bits in groups, rounded to the nearest
    "gptq": Scheme(modifier="GPTQModifier", calibrated=True),  # 4 bits in groups, rounded so that errors cancel
    "awq": Scheme(calibrated=True, scaled=True),  # 4 bits in groups, salient channels scaled
    "nvfp4": Scheme("NVFP4", calibrated=True),  # weights and inputs
})  # fmt: skip

GGUF = "gguf:"
"""Before the name of a type of GGUF's."""


def scheme_of(name: str) -> Scheme:
    """Raises UserError for a name that there is not."""
    if name not in SCHEMES:
        known = ", ".join([*SCHEMES, "gguf:TYPE (as gguf:Q8_0)"])
        raise UserError(f"--scheme {name}: there is none such; take one of {known}.")
    return SCHEMES[name]


def group_of(sizes: Mapping[str, int]) -> int:
    """How many inputs share a scale, for modules with so many inputs each. Raises UserError."""
    for group in GROUPS:
        if all(size % group == 0 for size in sizes.values()):
            return group
    name, size = next((name, size) for name, size in sizes.items() if size % GROUPS[-1])
    raise UserError(f"{name} has {size} inputs, which fill no groups of {GROUPS[-1]}: take --scheme fp8 or w8a8.")


def weights_in_groups(group: int, *, symmetric: bool) -> dict[str, Any]:
    """The arguments of LLM Compressor's `QuantizationArgs` for four bits."""
    return {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
