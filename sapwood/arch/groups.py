"""Which layers share a page table: those whose mixers keep the same kind of KV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sapwood.arch.network import Network
from sapwood.arch.parts import kinds_of
from sapwood.base.kv import Fixed, KVGroup, KVKind


class KVPlace(NamedTuple):
    """Where a layer keeps its KV: the group, and the number of the layer within the group."""

    group: int
    layer: int


def kv_groups(decoder: Network, page_size: int, rewind: int = 0) -> tuple[KVGroup, ...]:
    """The groups, those that keep every position first, else in the order of the layers. `rewind` is as in `KVGroup`."""
    if decoder.stage.groups:
        return _of_stage(decoder, page_size, rewind)
    counts = Counter(kind for kinds in _kept(decoder) for kind in kinds)
    groups = [KVGroup(kind, count, page_size, rewind) for kind, count in counts.items()]
    return tuple(sorted(groups, key=lambda group: group.window is not None))


def _of_stage(decoder: Network, page_size: int, rewind: int) -> tuple[KVGroup, ...]:
    """In the order of the whole's, since all stages share page numbers."""
    pairs = [
        pair
        for numbers, kinds in zip(decoder.stage.groups, _kept(decoder), strict=True)
        for pair in zip(numbers, kinds, strict=True)
    ]
    counts = sorted(Counter(pairs).items(), key=lambda one: one[0][0])
    return tuple(KVGroup(kind, count, page_size, rewind) for (_, kind), count in counts)


def joint_groups(decoders: Sequence[Network], page_size: int, rewind: int = 0) -> tuple[KVGroup, ...]:
    """Those of several models that run side by side, in their order: none shares a group with another."""
    return tuple(group for decoder in decoders for group in kv_groups(decoder, page_size, rewind))


def kv_places(decoder: Network) -> tuple[Mapping[KVKind, KVPlace], ...]:
    """The places of each layer by kind, those of another where it shares them; `group` counts in the order of `kv_groups`."""
    order = [group.kind for group in kv_groups(decoder, page_size=1)]
    counts, own = Counter[KVKind](), list[Mapping[KVKind, KVPlace]]()
    for kinds in _kept(decoder):
        own.append({kind: KVPlace(order.index(kind), counts[kind]) for kind in kinds})
        counts.update(kinds)
    return tuple(own[layer if block.shares is None else block.shares] for layer, block in enumerate(decoder.blocks))


def _kept(decoder: Network) -> list[tuple[KVKind, ...]]:
    """What each layer keeps in pages of its own."""
    kinds = [() if block.shares is not None else kinds_of(block.mixer) for block in decoder.blocks]
    return [tuple(kind for kind in one if not isinstance(kind, Fixed)) for one in kinds]


def fixed_of(decoder: Network) -> tuple[Fixed, int] | None:
    """What layers keep of an encoder's input, and how many do; None if none does."""
    kinds = [kind for block in decoder.blocks for kind in kinds_of(block.mixer) if isinstance(kind, Fixed)]
    if not kinds:
        return None
    assert len(set(kinds)) == 1, "layers look at an input alike"
    return kinds[0], len(kinds)
