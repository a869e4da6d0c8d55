"""Numbers as people write them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_BYTES = MappingProxyType({"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40})


def parse_bytes(text: str) -> int:
    """'512M', '4 GiB' to a whole number of bytes; ValueError if it is none."""
    return parse_number(text.upper().removesuffix("B").removesuffix("I"), _BYTES)


def parse_number(text: str, suffixes: Mapping[str, int]) -> int:
    """'1.5G' to a whole number; ValueError if it is none."""
    text = text.strip()
    suffix = text[-1:] if text[-1:].isalpha() else ""
    if suffix not in suffixes:
        raise ValueError(text)
    value = float(text.removesuffix(suffix).replace("_", "")) * suffixes[suffix]
    if value != int(value):
        raise ValueError(text)
    return int(value)
