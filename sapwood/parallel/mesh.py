"""The ranks that compute a model together, each a part of it.

Suffix legend: T tokens, E hidden size, V vocabulary, W the part of it that one rank has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Mesh(Protocol):
    """One of `size` ranks. All of them call the same functions in the same order, with tensors of the same dtype."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, x_TE: Tensor) -> Tensor:
        """The sum of what all ranks have, added up in the same order everywhere, so that all have the same bits. May overwrite `x`."""
        ...

    def gather(self, x_TW: Tensor, widths: Sequence[int]) -> Tensor:
        """What all ranks have side by side, [T, V], in their order; `widths` are the columns of each."""
        ...


class Alone:
    """A mesh of one, which has everything already."""

    rank = 0
    size = 1

    def sum(self, x_TE: Tensor) -> Tensor:
        return x_TE

    def gather(self, x_TW: Tensor, widths: Sequence[int]) -> Tensor:
        return x_TW


ALONE = Alone()
