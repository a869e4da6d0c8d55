"""Experts of which each is whole on one rank, instead of a part of each on all."""

from __future__ import annotations

import dataclasses
from typing import Any

from sapwood.arch.experts import Stack
from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder, Leaf, walk
from sapwood.arch.shard import shard
from sapwood.base.errors import ConfigError

FLAG = "--enable-expert-parallel"


def firsts(decoder: Network, size: int) -> tuple[int, ...]:
    """The first expert of each of `size` ranks. Raises ConfigError for a model that has no experts, or none that so many ranks can share."""
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"{FLAG}: another library's modules (--model-impl) are not cut.")
    if not any(isinstance(place.leaf, Stack) for place in walk(decoder)):
        raise ConfigError(f"{FLAG}: {decoder.architecture} has no experts; leave it out.")
    whole = apart(decoder)
    ranks = [shard(whole, rank=rank, size=size) for rank in range(size)]
    found = tuple(next(place.leaf.first for place in walk(one) if isinstance(place.leaf, Stack)) for one in ranks)
    if len(set(found)) < size:
        raise ConfigError(
            f"{FLAG}: what {decoder.architecture}'s ranks share of experts, and of those that every token sees, does not divide by {size}; "
            "leave it out, or take fewer ranks."
        )
    return found


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
