"""Which layers share a page table: those with the same KV geometry and the same window."""

from __future__ import annotations

from typing import NamedTuple

from sapwood.arch.parts import Attention, Decoder
from sapwood.base.kv import KVGroup


class KVPlace(NamedTuple):
    """Where a layer keeps its keys and values: the group, and the number of the layer within the group."""

    group: int
    layer: int


def kv_groups(decoder: Decoder, page_size: int) -> tuple[KVGroup, ...]:
    """The groups, those that keep every position first, else in the order of the layers."""
    keys = [_key(block.attention) for block in decoder.blocks]
    return tuple(
        KVGroup(
            num_layers=keys.count(key),
            num_heads=key.num_heads,
            num_kv_heads=key.num_kv_heads,
            head_dim=key.head_dim,
            window=key.window,
            page_size=page_size,
        )
        for key in _order(keys)
    )


def kv_places(decoder: Decoder) -> tuple[KVPlace, ...]:
    """The place of each layer; `group` counts in the order of `kv_groups`."""
    keys = [_key(block.attention) for block in decoder.blocks]
    order = _order(keys)
    return tuple(KVPlace(order.index(key), keys[:layer].count(key)) for layer, key in enumerate(keys))


class _Key(NamedTuple):
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None


def _key(attention: Attention) -> _Key:
    return _Key(attention.num_heads, attention.num_kv_heads, attention.head_dim, attention.window)


def _order(keys: list[_Key]) -> list[_Key]:
    return sorted(dict.fromkeys(keys), key=lambda key: key.window is not None)
