"""The operations of blocks that look at what an encoder has read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sapwood.arch.reader import CrossAttention, Twofold
from sapwood.kernels.cpu import library as cpu
from sapwood.nn.stack import FRESH, ROOM, STREAM, Operation, Spot, missing, operations


@missing.register
def _(part: Twofold) -> str | None:
    return missing(part.own)


@operations.register
def _twofold(part: Twofold, spot: Spot) -> Iterator[Operation]:
    """The first half joins the stream at once, and the second takes the stream's norm, or, if that is a norm of sums, the stream."""
    yield from operations(part.own, replace(spot, path=f"{spot.path}.own", to=STREAM, add=True))
    norm = spot.weights.norm(f"{spot.path}.norm", part.norm)
    if part.summed:
        yield Operation("settle", (norm, part.norm.size))
    else:
        yield Operation("norm", (norm, cpu.Norm(), 0.0, FRESH, part.norm.size))
    yield from operations(part.cross, replace(spot, path=f"{spot.path}.cross"))


@operations.register
def _cross(part: CrossAttention, spot: Spot) -> Iterator[Operation]:
    assert spot.weights.inputs is not None, "what its encoder leaves is a group of the library"
    yield Operation("project", (spot.product("query"), ROOM, False))
    yield Operation("attend_entries", (spot.weights.inputs, spot.block, ROOM, part.scale))
    yield spot.yields("out")
