"""Experts of which each is whole on one rank, instead of a part of each on all."""

from __future__ import annotations

import dataclasses
from typing import Any

from sapwood.arch.experts import Stack
from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder, Leaf, walk
from sapwood.base.errors import ConfigError

FLAG = "--enable-expert-parallel"


def check(decoder: Network) -> None:
    """Raise ConfigError for a model that has no experts."""
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"{FLAG}: another library's modules (--model-impl) are not cut.")
    if not any(isinstance(place.leaf, Stack) for place in walk(decoder)):
        raise ConfigError(f"{FLAG}: {decoder.architecture} has no experts; leave it out.")


def apart(decoder: Decoder) -> Decoder:
    """The model with its experts, if it has some, as `shard` is to share them: by their number."""
    blocks = tuple(dataclasses.replace(block, ffn=_apart(block.ffn)) for block in decoder.blocks)
    return dataclasses.replace(decoder, blocks=blocks)


def _apart(part: Any) -> Any:
    if isinstance(part, Stack):
        return dataclasses.replace(part, apart=True, other=_apart(part.other))
    if isinstance(part, Leaf) or not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    fields = {field.name: _apart(getattr(part, field.name)) for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **fields)
