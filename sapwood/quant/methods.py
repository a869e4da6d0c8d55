"""The methods by the names that checkpoints give them, and the choice between them for a model. No torch until one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sapwood.quant.base import Choice

ReadSection = Callable[[Mapping[str, Any]], "Choice"]
"""From a config's `quantization_config` to the method of each Linear, which is another one for those that the section excepts
(`modules_to_not_convert`, `ignore`)."""

METHODS: Mapping[str, ReadSection] = MappingProxyType({})
"""By `quant_method`. A checkpoint of another name is refused when it is declared."""


def of(section: Mapping[str, Any] | None, otherwise: Choice, methods: Mapping[str, ReadSection] = METHODS) -> Choice:
    """What the section of a checkpoint asks for, `otherwise` where it has none."""
    return otherwise if section is None else methods[section["quant_method"]](section)
