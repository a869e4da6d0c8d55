"""What has weights: a leaf, and the tensors of a checkpoint that it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from sapwood.arch.share import Share


@dataclass(frozen=True)
class Axis:
    """An axis of a checkpoint's tensor: the leaf wants `size` entries from `first` on, of `whole`, by default all.

    Ranks share them between `unit`s of so many entries; None gives every rank all. Of what counts `once` no two ranks may have
    the same. Along a `joined` axis the tensors of one param of a leaf lie one behind the other. With a `turn` they are no run:
    `turn` entries are the leaf's of each `every`.
    """

    size: int
    unit: int | None = None
    first: int = 0
    whole: int | None = None
    joined: bool = False
    turn: int | None = None
    every: int = 0
    once: bool = False

    def of(self, share: Share) -> slice:
        """What a rank has of the leaf's entries."""
        return slice(0, self.size) if self.unit is None else share.run(self.size, self.unit)


@dataclass(frozen=True)
class StoredTensor:
    """What a leaf's `param` has of the checkpoint tensor `name`, which holds the last two axes in reverse order if
    `transposed`, and whose rows are to be divided by their lengths if `unit_rows`; without `axes` all of it, whatever its
    shape. Where ranks add their outputs up, one `alone` has it. A checkpoint may lack one that is `optional`. An `entry`, its
    number and the axis that such entries are on, is that of the param's first axis that the tensor is. What is the `same`
    for all entries every rank has; what else has no `axes` cannot be cut."""

    param: str
    name: str
    axes: tuple[Axis, ...] | None
    alone: bool = False
    transposed: bool = False
    unit_rows: bool = False
    optional: bool = False
    entry: tuple[int, Axis] | None = None
    same: bool = False

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the whole checkpoint tensor; None: whatever it is."""
        if self.axes is None:
            return None
        shape = tuple(axis.size if axis.whole is None else axis.whole for axis in self.axes)
        return (*shape[:-2], *reversed(shape[-2:])) if self.transposed else shape


class Leaf(ABC):
    """A part that has weights."""

    @abstractmethod
    def tensors(self) -> tuple[StoredTensor, ...]:
        """What it is made of in a checkpoint that stores weights as they are."""

    @property
    def spellings(self) -> tuple[Leaf, ...]:
        """The same as checkpoints may have it, the usual way first."""
        return (self,)

    def shared(self, share: Share) -> Self:
        """What a rank has of it; all, unless it says otherwise."""
        return self
