"""What each of several ranks has of a model: which slice of which checkpoint tensor goes where.

One function serves every model, because each leaf says along which axis it is cut and what must stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sapwood.arch.parts import Decoder, Embedding, Linear, Norm, Place, walk
from sapwood.base.errors import ModelError


@dataclass(frozen=True)
class Piece:
    """`param` of the leaf at `path`, sliced by `target`, is the checkpoint tensor `name`, sliced by `source`.

    `shape` is that of the whole checkpoint tensor. Several pieces may come from one tensor.
    """

    path: str
    param: Literal["weight", "bias"]
    name: str
    shape: tuple[int, ...]
    source: tuple[slice, ...]
    target: tuple[slice, ...]


def weight_map(decoder: Decoder, *, rank: int = 0, size: int = 1) -> tuple[Piece, ...]:
    """Every piece that rank `rank` of `size` loads. ModelError if the model cannot be cut that way."""
    return tuple(piece for place in walk(decoder) for piece in _pieces(place, rank, size))


def share(total: int, unit: int, rank: int, size: int, *, name: str) -> slice:
    """The rank's run of `total`, cut between units. Fewer units than ranks: neighbours have the same one."""
    units = total // unit
    if units % size and size % units:
        raise ModelError(f"{name}: {units} units of {unit} cannot be shared by {size} ranks.")
    count = max(units // size, 1)
    start = rank * units // size
    return slice(start * unit, (start + count) * unit)


def _pieces(place: Place, rank: int, size: int) -> Iterator[Piece]:
    leaf, path = place.leaf, place.path
    match leaf:
        case Norm():
            whole = (slice(0, leaf.size),)
            yield Piece(path, "weight", f"{place.prefix}{leaf.name}.weight", (leaf.size,), whole, whole)
        case Embedding():
            rows = share(leaf.vocab_size, 1, rank, size, name=leaf.name)
            columns = slice(0, leaf.hidden_size)
            target = (slice(0, rows.stop - rows.start), columns)
            shape = (leaf.vocab_size, leaf.hidden_size)
            yield Piece(path, "weight", f"{place.prefix}{leaf.name}.weight", shape, (rows, columns), target)
        case Linear():
            yield from _linear_pieces(leaf, path, place.prefix, rank, size)


def _linear_pieces(leaf: Linear, path: str, prefix: str, rank: int, size: int) -> Iterator[Piece]:
    columns = slice(0, leaf.inp)
    if leaf.split == "in":
        columns = share(leaf.inp, leaf.unit, rank, size, name=prefix + leaf.parts[0].name)
    target_columns = slice(0, columns.stop - columns.start)
    target_row = 0
    for index, part in enumerate(leaf.parts):
        name = prefix + part.name
        rows = slice(0, part.size)
        if leaf.split == "out":
            rows = share(part.size, part.unit, rank, size, name=name)
        # Parts of one name are consecutive runs of rows of one tensor.
        first_row = sum(other.size for other in leaf.parts[:index] if other.name == part.name)
        num_rows = sum(other.size for other in leaf.parts if other.name == part.name)
        source = slice(first_row + rows.start, first_row + rows.stop)
        target = slice(target_row, target_row + rows.stop - rows.start)
        target_row = target.stop
        yield Piece(path, "weight", f"{name}.weight", (num_rows, leaf.inp), (source, columns), (target, target_columns))
        # The ranks' outputs of a Linear cut along its input are added up, so one of them has the bias.
        if leaf.bias and (leaf.split != "in" or rank == 0):
            yield Piece(path, "bias", f"{name}.bias", (num_rows,), (source,), (target,))
