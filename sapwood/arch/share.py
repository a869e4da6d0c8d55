"""How several ranks share what a model, or a part of one, is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Share:
    """What rank `rank` of `size` has: of everything that is cut, the same run of `grains`. None: all of it.

    What has fewer units than there are ranks, such as heads of keys, neighbours have twice.
    """

    rank: int
    size: int
    grains: int | None

    @property
    def first(self) -> bool:
        """Whether it has what only one of those may have whose outputs are added up."""
        return self.rank == 0 or self.grains is None

    def run(self, total: int, unit: int) -> slice:
        """Which of `total` entries it has, cut between units of so many."""
        if self.grains is None:
            return slice(0, total)
        count = total // unit
        if count % self.grains == 0:
            each = unit * (count // self.grains)
            return slice(self.rank * self.grains // self.size * each, (self.rank + 1) * self.grains // self.size * each)
        mine = self.rank * count // self.size
        return slice(mine * unit, (mine + 1) * unit)

    def count(self, total: int) -> int:
        """How many it has of `total`."""
        return len(range(total)[self.run(total, 1)])


WHOLE = Share(0, 1, None)


@dataclass(frozen=True)
class Stage:
    """One of `count` runs of the blocks of a `whole` (a Decoder); its own begin with block `first` of that. What is before all blocks is with
    the first stage, what is behind them with the last, which has the embeddings too if they are the head (`tied`). `groups` are the
    numbers of the whole's KV groups that each block keeps something in."""

    number: int = 0
    count: int = 1
    first: int = 0
    tied: bool = False
    groups: tuple[tuple[int, ...], ...] = ()
    whole: Any = field(default=None, compare=False, repr=False)

    @property
    def begins(self) -> bool:
        return self.number == 0

    @property
    def ends(self) -> bool:
        return self.number == self.count - 1


WHOLE_MODEL = Stage()
