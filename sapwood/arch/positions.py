"""What is added to tokens' vectors: learned ones of their positions, or computed ones, and of the text that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.arch.parts import Axis, Leaf, StoredTensor


@dataclass(frozen=True)
class Positions(Leaf):
    """A learned vector for each of `count` positions, added to the token's: row `offset` of the tensor is that of position 0."""

    name: str
    count: int
    hidden_size: int
    offset: int = 0

    def tensors(self) -> tuple[StoredTensor, ...]:
        rows = Axis(self.count, first=self.offset, whole=self.count + self.offset)
        return (StoredTensor("weight", f"{self.name}.weight", (rows, Axis(self.hidden_size))),)


@dataclass(frozen=True)
class Sinusoids:
    """A vector for each of `count` positions, added to the token's: sines of ever slower waves, and behind them their cosines, of the
    position plus `offset`. The slowest wave is 10000 times as long as the first, or, unless `whole`, one step short of that."""

    count: int
    hidden_size: int
    offset: int = 0
    whole: bool = True


@dataclass(frozen=True)
class Segments(Leaf):
    """A learned vector for tokens of a first text and one for those of a second, added to the token's. There may be `count` of them."""

    name: str
    count: int
    hidden_size: int

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor("weight", f"{self.name}.weight", (Axis(self.count), Axis(self.hidden_size))),)
