"""What each of several ranks has of a model: which slice of which checkpoint tensor goes where.

One function serves every model, because each leaf says of its tensors along which axis they are cut and what must stay whole.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sapwood.arch.parts import Axis, Network, Place, StoredTensor, walk
from sapwood.base.errors import ModelError

T = TypeVar("T")


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


def weight_map(
    decoder: Network,
    *,
    rank: int = 0,
    size: int = 1,
    tensors: Callable[[Place], Sequence[StoredTensor]] = plain,
) -> tuple[Piece, ...]:
    """Every piece that rank `rank` of `size` loads; `tensors` says what each leaf is made of. ModelError if the model cannot
    be cut that way."""
    return tuple(piece for place in walk(decoder) for piece in _pieces(place, tensors(place), rank, size))


def share(total: int, unit: int, rank: int, size: int, *, name: str) -> slice:
    """The rank's run of `total`, cut between units. Fewer units than ranks: neighbours have the same one."""
    units = total // unit
    if units % size and size % units:
        raise ModelError(f"{name}: {units} units of {unit} cannot be shared by {size} ranks.")
    count = max(units // size, 1)
    start = rank * units // size
    return slice(start * unit, (start + count) * unit)


def _pieces(place: Place, tensors: Sequence[StoredTensor], rank: int, size: int) -> Iterator[Piece]:
    ends: Counter[tuple[str, int]] = Counter()  # of what there is of each param's entry, along its joined axis
    for tensor in tensors:
        if tensor.alone and rank:
            continue
        name = place.prefix + tensor.name
        number, count = tensor.expert or (0, 1)
        experts = share(count, 1, rank, size, name=name) if tensor.expert else slice(0, 1)
        if not experts.start <= number < experts.stop:
            continue
        entry = (slice(number - experts.start, number - experts.start + 1),) if tensor.expert else ()
        if tensor.axes is None:
            yield Piece(place.path, tensor.param, name, None, (), entry, optional=tensor.optional)
            continue
        runs = [_run(axis, rank, size, name) for axis in tensor.axes]
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


def _run(axis: Axis, rank: int, size: int, name: str) -> slice:
    """What the rank has of the leaf's entries."""
    return slice(0, axis.size) if axis.unit is None else share(axis.size, axis.unit, rank, size, name=name)
