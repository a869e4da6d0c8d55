"""Families of transformers that are none of Sapwood's own: for each its classes, and fields that make its parts matter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

UNKNOWN: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType(
    {
        "apertus": ("ApertusConfig", "ApertusForCausalLM", {}),
        "persimmon": ("PersimmonConfig", "PersimmonForCausalLM", {}),
        "afmoe": ("AfmoeConfig", "AfmoeForCausalLM", {}),
    }
)
