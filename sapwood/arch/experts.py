"""A feed-forward of which each token uses a few parts: experts, and the router that chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from sapwood.arch.beside import Factor
from sapwood.arch.parts import Activation, Axis, Leaf, Linear, Mlp, Norm, StoredTensor
from sapwood.arch.share import Share
from sapwood.base.selection import Selection


@dataclass(frozen=True)
class Offsets(Leaf):
    """A number for each expert, added to its score while experts are chosen, and not to its weight."""

    name: str
    count: int
    row: bool = False  # the checkpoint has them as a matrix of one row, or as GGUF files do

    @property
    def spellings(self) -> tuple[Leaf, ...]:
        return (self, replace(self, row=False)) if self.row else (self,)

    def tensors(self) -> tuple[StoredTensor, ...]:
        axes = (Axis(1), Axis(self.count)) if self.row else (Axis(self.count),)
        return (StoredTensor("weight", self.name, axes),)


@dataclass(frozen=True)
class Stack(Leaf):
    """`count` Linears of one shape, one for each expert; ranks share each of them, as its `linear` says.

    A part's name with a {} is that of the tensor of each expert, by its number; else it is that of all, one behind the other
    along a first axis. A `bare` name is the weight's own, and others follow behind a `_`. Some checkpoints have it as `other`. If they are
    `apart`, each is whole, and with one rank only (`arch/apart.py`); these are then those from expert `first` on.
    """

    count: int
    linear: Linear
    bare: bool = False
    other: Stack | None = None
    apart: bool = False
    first: int = 0

    @property
    def spellings(self) -> tuple[Leaf, ...]:
        return (self,) if self.other is None else (self, self.other)

    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.of_all(self.linear.tensors())

    def of_all(self, tensors: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
        """What experts have where a Linear has these."""
        found: list[StoredTensor] = []
        mine = Axis(self.count, 1, once=True) if self.apart else Axis(self.count)
        for tensor in map(_whole, tensors) if self.apart else tensors:
            name = self._bare(tensor.name) if self.bare else tensor.name
            if "{}" in name:
                entries = ((expert, mine) for expert in range(self.count))
                found += [replace(tensor, name=name.format(at[0]), entry=at) for at in entries]
            else:
                axes = None if tensor.axes is None else (mine, *tensor.axes)
                found.append(replace(tensor, name=name, axes=axes))
        return tuple(found)

    def of_one(self, expert: int) -> Linear:
        """The Linear of one expert, by its own names."""
        if not any("{}" in part.name for part in self.linear.parts):
            return self.linear  # they have one name together
        parts = tuple(replace(part, name=part.name.format(expert)) for part in self.linear.parts)
        return replace(self.linear, parts=parts)

    def shared(self, share: Share) -> Self:
        other = None if self.other is None else self.other.shared(share)
        if self.apart:
            run = share.run(self.count, 1)
            return replace(self, count=run.stop - run.start, first=run.start, other=other)
        return replace(self, linear=self.linear.shared(share), other=other)

    @staticmethod
    def _bare(name: str) -> str:
        return name.removesuffix(".weight") if name.endswith(".weight") else "_".join(name.rsplit(".", 1))


def _whole(tensor: StoredTensor) -> StoredTensor:
    """Of one expert that nobody shares."""
    axes = None if tensor.axes is None else tuple(replace(axis, unit=None, once=False) for axis in tensor.axes)
    return replace(tensor, axes=axes, alone=False, same=tensor.same or axes is None)


@dataclass(frozen=True)
class Gauged:
    """A router that sees what it routes its own way: linear(scale * factor * norm(x))."""

    linear: Linear
    norm: Norm
    factor: Factor
    scale: float


@dataclass(frozen=True)
class Experts:
    """The sum of down(activation(gate) * up) of the experts that are chosen for a token, each times its weight.

    Every token sees the `shared` one too, times the sigmoid of `shared_gate`'s product if there is one. With `weighs_input`
    the weight is of what an expert takes, and not of what it yields.
    """

    router: Linear | Gauged
    selection: Selection
    gate_up: Stack
    down: Stack
    activation: Activation
    offsets: Offsets | None = None
    shared: Mlp | None = None
    shared_gate: Linear | None = None
    weighs_input: bool = False

    fixed: ClassVar[tuple[str, ...]] = ("router", "shared_gate")

    @property
    def count(self) -> int:
        return self.gate_up.count
