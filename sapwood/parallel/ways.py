"""What stages of a pipeline have of each other: the protocol, and the way of a model in one piece. Imports without torch.

Suffix legend: T tokens, E hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Pipe(Protocol):
    """Stage `number` of `count`. What one gives the next takes, in the same order."""

    @property
    def number(self) -> int: ...

    @property
    def count(self) -> int: ...

    def take(self, like_TE: Tensor) -> Tensor:
        """The hidden states that the stage before gives, written to `like`."""
        ...

    def give(self, x_TE: Tensor) -> None:
        """Send hidden states to the next stage."""
        ...


class NoPipe:
    """Of a model that is in one piece: nothing is given or taken."""

    number = 0
    count = 1

    def take(self, like_TE: Tensor) -> Tensor:
        raise AssertionError("the only stage has nothing before it")

    def give(self, x_TE: Tensor) -> None:
        raise AssertionError("the only stage has nothing behind it")


NO_PIPE = NoPipe()
