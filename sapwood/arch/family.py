"""What a family is: how its config is read, and how GGUF files name and lay out its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sapwood.arch.gguf import GgufKeys
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """A family in GGUF files.

    Attributes:
        architecture: Its name there.
        fields: From the file's keys and the fields of a config.json that every model has, those that only this family has.
        names: Modules of a block by the stem of their tensors, where they are others than those of `sapwood.arch.gguf.INNER`;
            a {} is for the numbers of those that lie in one tensor. By a tensor's whole name it is the tensor's, not its module's.
        outer: Modules outside of blocks likewise, where they are others than those of `OUTER`.
        block: What begins the names of a block's modules.
        paired: Rows of queries and keys that rotate together lie side by side; else a head's halves do.
        norm_offset: What the file has added to the weights of norms.
    """

    architecture: str
    fields: Callable[[GgufKeys, Mapping[str, Any]], Mapping[str, Any]]
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    outer: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    block: str = "model.layers.{}."
    paired: bool = False
    norm_offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one `architecture`, as a config.json names it. Without `gguf` they are not read from such files."""

    architecture: str
    declare: Callable[[HfConfig], Decoder]
    gguf: Gguf | None = None
