"""What each of several ranks has of a model: parts of its size, and which slice of which checkpoint tensor goes where.

One pass serves every model, because each leaf says of its tensors along which axis they are cut and what must stay whole. Each half
of a block is cut by itself, everything in it at the same fractions: the finest that all of its axes allow, in which a head or a
group of quantised weights is never cut. A half that cannot be cut so is with every rank as a whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sapwood.arch.network import Network
from sapwood.arch.parts import Axis, Decoder, Leaf, Place, StoredTensor, Tied, inside, leaves, walk
from sapwood.arch.share import WHOLE, Share

T = TypeVar("T")
Tensors = Callable[[Place], Sequence[StoredTensor]]
"""What a leaf is made of."""

_HALVES = ("mixer", "ffn")
_ENDS = ("embed", "head")


@dataclass(frozen=True)
class Piece:
    """`param` of the leaf at `path`, sliced by `target`, is the checkpoint tensor `name`, sliced by `source`.

    `shape` is that of the whole checkpoint tensor, which holds the piece `transposed` or as it is; None: whatever it is.
    Its rows are divided by their lengths if `unit_rows`. Several pieces may come from one tensor. A checkpoint may lack one that is `optional`.
    """

    path: str
    param: str
    name: str
    shape: tuple[int, ...] | None
    source: tuple[slice, ...]
    target: tuple[slice, ...]
    transposed: bool = False
    unit_rows: bool = False
    optional: bool = False


def plain(place: Place) -> Sequence[StoredTensor]:
    """What a leaf is made of in a checkpoint that stores weights as they are."""
    return place.leaf.tensors()


def shard(decoder: Decoder, *, rank: int, size: int, tensors: Tensors = plain) -> Decoder:
    """The model that rank `rank` of `size` computes; `tensors` says what each leaf of the whole one is made of."""
    if size == 1:
        return decoder
    shares: dict[str, Share] = {}

    def cut(part: Any, path: str, prefix: str) -> Any:
        grains = _grains(part, leaves(part, path, prefix), size, tensors, gathered=path in _ENDS)
        if grains is None:
            return part
        shares[path] = Share(rank, size, grains)
        return _shared(part, shares[path])

    blocks = []
    for index, block in enumerate(decoder.blocks):
        path, prefix = f"blocks.{index}", decoder.block_prefix.format(decoder.stage.first + index)
        halves = {name: cut(getattr(block, name), f"{path}.{name}", prefix) for name in _HALVES}
        parted = tuple(name for name in _HALVES if f"{path}.{name}" in shares)
        blocks.append(replace(block, **halves, parted=parted))
    ends = {name: cut(getattr(decoder, name), name, "") for name in _ENDS}
    parted = tuple(name for name in _ENDS if name in shares)
    return replace(decoder, blocks=tuple(blocks), **ends, parted=parted, portion=(decoder, shares))


def widths(decoder: Decoder) -> tuple[int, ...] | None:
    """How much of the vocabulary the head of each rank has, where it is a part."""
    head = "embed" if isinstance(decoder.head, Tied) else "head"
    if decoder.portion is None or head not in decoder.parted:
        return None
    whole, shares = decoder.portion
    ranks = (replace(shares[head], rank=rank) for rank in range(shares[head].size))
    return tuple(rank.count(whole.vocab_size) for rank in ranks)


def _grains(part: object, places: Iterable[Place], size: int, tensors: Tensors, *, gathered: bool) -> int | None:
    """Into how many equal runs all axes in a part can be cut that are cut at all, at least `size`; None if there are not so many.

    What is not `once` may have fewer units than ranks, if these share them evenly. Of halves some axis is `once`, that which is summed
    over; ends are gathered.
    """
    if any(getattr(one, "indivisible", False) for _, one in inside(part, "")):
        return None
    once, others = set(), {count for _, one in inside(part, "") for count in _counted(one)}
    for place in places:
        for tensor in tensors(place):
            if tensor.axes is None and not tensor.same:
                once |= {1}
            for axis in (*(tensor.axes or ()), *(() if tensor.entry is None else (tensor.entry[1],))):
                if axis.unit is not None:
                    units = 1 if axis.size % axis.unit else axis.size // axis.unit
                    (once if axis.once else others).add(units)
    if not once and not (gathered and others):
        return None
    if (grains := math.gcd(*once, *others)) >= size:
        return grains
    repeated = {count for count in others if count < size and size % count == 0}
    grains = math.gcd(*once, *(others - repeated))
    return grains if once and grains >= size and not any(grains % count for count in repeated) else None


def _counted(part: object) -> Iterator[int]:
    for name in getattr(part, "counted", ()):
        if (value := getattr(part, name)) is not None:
            yield value if isinstance(value, int) else len(value)


def _shared(part: Any, share: Share) -> Any:
    """What a rank has of a part, and of all within."""
    if isinstance(part, Leaf):
        return part.shared(share)
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    fields = {field.name: _shared(getattr(part, field.name), share) for field in dataclasses.fields(part)}
    for name in getattr(part, "counted", ()):
        if (value := getattr(part, name)) is not None:
            fields[name] = share.count(value) if isinstance(value, int) else value[share.run(len(value), 1)]
    return replace(part, **fields)


def weight_map(decoder: Network, *, tensors: Tensors = plain) -> tuple[Piece, ...]:
    """Every piece that a model loads, of the whole one's tensors if it is a rank's; `tensors` says what each leaf is made of."""
    whole, shares = decoder.portion or (decoder, {})
    return tuple(
        piece for place in walk(whole) for piece in _pieces(place, tensors(place), share_at(place.path, shares))
    )


def share_at(path: str, shares: Mapping[str, Share]) -> Share:
    """That of the half, or the end, that the leaf at `path` is in."""
    names = path.split(".")
    return shares.get(".".join(names[:3] if names[0] == "blocks" else names[:1]), WHOLE)


def _pieces(place: Place, tensors: Sequence[StoredTensor], share: Share) -> Iterator[Piece]:
    ends: Counter[tuple[str, int]] = Counter()  # of what there is of each param's entry, along its joined axis
    for tensor in tensors:
        if tensor.alone and not share.first:
            continue
        name = place.prefix + tensor.name
        number, entries = (0, slice(0, 1)) if tensor.entry is None else (tensor.entry[0], tensor.entry[1].of(share))
        if not entries.start <= number < entries.stop:
            continue
        entry = () if tensor.entry is None else (slice(number - entries.start, number - entries.start + 1),)
        if tensor.axes is None:
            yield Piece(place.path, tensor.param, name, None, (), entry, optional=tensor.optional)
            continue
        runs = [axis.of(share) for axis in tensor.axes]
        begins = [ends[tensor.param, number] if axis.joined else 0 for axis in tensor.axes]
        cuts = [_cuts(axis, run, begin) for axis, run, begin in zip(tensor.axes, runs, begins, strict=True)]
        for cut in itertools.product(*cuts):
            source, target = tuple(one for one, _ in cut), entry + tuple(one for _, one in cut)
            turned = tensor.transposed
            yield Piece(
                place.path,
                tensor.param,
                name,
                tensor.shape,
                _turn(source, turned),
                target,
                transposed=turned,
                unit_rows=tensor.unit_rows,
                optional=tensor.optional,
            )
        for axis, begin, run in zip(tensor.axes, begins, runs, strict=True):
            if axis.joined:
                ends[tensor.param, number] = begin + run.stop - run.start


def _turn(axes: tuple[T, ...], turned: bool) -> tuple[T, ...]:
    """With the last two the other way round."""
    return (*axes[:-2], *reversed(axes[-2:])) if turned else axes


def _cuts(axis: Axis, run: slice, begin: int) -> list[tuple[slice, slice]]:
    """The rank's entries as slices of the tensor, and of the param from `begin` on: one, or one of each turn of several."""
    if axis.turn == 1:
        first, size = axis.first + run.start * axis.every, run.stop - run.start
        return [(slice(first, first + (size - 1) * axis.every + 1, axis.every), slice(begin, begin + size))]
    cuts, at = [], run.start
    while at < run.stop:
        turn, within = divmod(at, axis.turn or axis.size)
        length = min(run.stop - at, (axis.turn or axis.size) - within)
        source, target = axis.first + turn * axis.every + within, begin + at - run.start
        cuts.append((slice(source, source + length), slice(target, target + length)))
        at += length
    return cuts
