"""Runs of a model's blocks, each for ranks of its own: a pipeline's stages.

Hidden states pass from one to the next; nothing else does, so what blocks of several stages would have to share is refused.
"""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.groups import kv_groups, kv_places
from sapwood.arch.network import Network
from sapwood.arch.parts import Block, Decoder, Tied
from sapwood.arch.share import Stage
from sapwood.base.errors import ConfigError

FLAG = "--pipeline-parallel-size"


def stage(decoder: Network, number: int, count: int) -> Network:
    """Stage `number` of `count` of a model. Raises ConfigError for one that cannot be taken apart so."""
    if count == 1:
        return decoder
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"another library's modules (--model-impl) are not taken apart: leave out {FLAG}.")
    first, end = _bounds(decoder, count)[number]
    _check(decoder, count)
    places = kv_places(decoder)
    groups = tuple(
        () if block.shares is not None else tuple(place.group for place in places[first + index].values())
        for index, block in enumerate(decoder.blocks[first:end])
    )
    tied = number == count - 1 and isinstance(decoder.head, Tied)
    blocks = tuple(_moved(block, first) for block in decoder.blocks[first:end])
    return replace(decoder, blocks=blocks, mtp=None, stage=Stage(number, count, first, tied, groups, decoder))


def _bounds(decoder: Decoder, count: int) -> list[tuple[int, int]]:
    """First block and end of each stage: as many blocks each as can be, those with more of them in the middle, since the first and the last have
    the vocabulary besides."""
    total = len(decoder.blocks)
    if total < count:
        raise ConfigError(f"{FLAG} {count}: {decoder.architecture} has {total} layers only; take so many at most.")
    sizes, left = [total // count] * count, total % count
    for place in sorted(range(count), key=lambda one: (one in (0, count - 1), one == count - 1))[:left]:
        sizes[place] += 1
    ends = [sum(sizes[: place + 1]) for place in range(count)]
    return [(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _check(decoder: Decoder, count: int) -> None:
    for name, what in (
        ("vectors", "vectors of tokens for each layer"),
        ("streams", "several residual streams"),
        ("encoder", "an encoder"),
        ("relative", "biases of distances"),
    ):
        if getattr(decoder, name) is not None:
            raise ConfigError(f"{FLAG}: {decoder.architecture} has {what}, which do not pass from stage to stage.")
    numbers = range(len(kv_groups(decoder, 1)))
    places = kv_places(decoder)
    for number, (first, end) in enumerate(_bounds(decoder, count)):
        if any(block.shares is not None and block.shares < first for block in decoder.blocks[first:end]):
            raise ConfigError(
                f"{FLAG} {count}: layers of stage {number} take keys and values of a stage before; take fewer."
            )
        own = zip(decoder.blocks[first:end], places[first:end], strict=True)
        kept = {place.group for block, found in own if block.shares is None for place in found.values()}
        if kept != {*numbers}:
            raise ConfigError(
                f"{FLAG} {count}: stage {number} would have no layer of one of the kinds that {decoder.architecture} keeps in its "
                "cache; take fewer."
            )


def _moved(block: Block, by: int) -> Block:
    return block if block.shares is None else replace(block, shares=block.shares - by)
