"""The methods by the names that checkpoints give them, and the choice between them for a model. No torch until one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from sapwood.quant.base import Choice

ReadSection = Callable[[Mapping[str, Any]], "Choice"]
"""From a config's `quantization_config` to the method of each Linear, which is another one for those that the section excepts
(`modules_to_not_convert`, `ignore`). Raises ModelError for what cannot be read."""


@dataclass(frozen=True)
class Format:
    """A `function` of a module of `sapwood.quant.formats`, imported when it is first asked."""

    module: str
    function: str = "read"

    def __call__(self, section: Mapping[str, Any]) -> Choice:
        return cast(ReadSection, getattr(import_module(f"sapwood.quant.formats.{self.module}"), self.function))(section)


METHODS: Mapping[str, ReadSection] = MappingProxyType({
    "auto-round": Format("auto_round"),
    "awq": Format("awq"),
    "bitsandbytes": Format("bitsandbytes"),
    "compressed-tensors": Format("compressed_tensors"),
    "fbgemm_fp8": Format("fp8", "read_fbgemm"),
    "fp8": Format("fp8"),
    "gptq": Format("gptq"),
    "modelopt": Format("modelopt"),
    "mxfp4": Format("mxfp4"),
    "torchao": Format("torchao"),
})  # fmt: skip
"""By `quant_method`. A checkpoint of another name is refused when it is declared."""


def of(section: Mapping[str, Any] | None, otherwise: Choice, methods: Mapping[str, ReadSection] = METHODS) -> Choice:
    """What the section of a checkpoint asks for, `otherwise` where it has none."""
    return otherwise if section is None else methods[section["quant_method"]](section)
