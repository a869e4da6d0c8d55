"""Which layers share a page table: those whose mixers keep the same kind of KV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sapwood.arch.parts import Network
from sapwood.base.kv import KVGroup, KVKind


class KVPlace(NamedTuple):
    """Where a layer keeps its KV: the group, and the number of the layer within the group."""

    group: int
    layer: int


def kv_groups(decoder: Network, page_size: int, rewind: int = 0) -> tuple[KVGroup, ...]:
    """The groups, those that keep every position first, else in the order of the layers. `rewind` is as in `KVGroup`."""
    kinds = _kept(decoder)
    groups = [KVGroup(kind, kinds.count(kind), page_size, rewind) for kind in dict.fromkeys(kinds) if kind is not None]
    return tuple(sorted(groups, key=lambda group: group.window is not None))


def joint_groups(decoders: Sequence[Network], page_size: int, rewind: int = 0) -> tuple[KVGroup, ...]:
    """Those of several models that run side by side, in their order: none shares a group with another."""
    return tuple(group for decoder in decoders for group in kv_groups(decoder, page_size, rewind))


def kv_places(decoder: Network) -> tuple[KVPlace | None, ...]:
    """The place of each layer, that of another where it shares it, None where it keeps nothing; `group` counts in the order of
    `kv_groups`."""
    kinds = _kept(decoder)
    order = [group.kind for group in kv_groups(decoder, page_size=1)]
    own = [
        None if kind is None else KVPlace(order.index(kind), kinds[:layer].count(kind))
        for layer, kind in enumerate(kinds)
    ]
    return tuple(own[layer if block.shares is None else block.shares] for layer, block in enumerate(decoder.blocks))


def _kept(decoder: Network) -> list[KVKind | None]:
    """What each layer keeps of its own."""
    return [None if block.shares is not None else block.mixer.kv for block in decoder.blocks]
