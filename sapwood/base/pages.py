"""Pages of the KV cache on their way between a device and the host's memory, beside the plans and in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sapwood.base.plan import Ints

Bytes = NDArray[np.uint8]

Rooms = Callable[[Sequence[tuple[int, int]]], Sequence[Bytes]]
"""Makes arrays of the shapes that are asked for, [blocks, bytes of a page] each."""

STAGING = 256 << 20
"""Bytes of host memory that pages pass through, in about."""


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Pages of one KV group and the blocks of host memory that they go to, or come from; no block and no page twice."""

    pages_M: Ints
    blocks_M: Ints


class Pager(Protocol):
    """Copies pages of a device to blocks of host memory and back.

    A call counts among the plans where it is made: behind all that plans have been told to write whose forward has begun, and
    before all that later ones do. So whoever calls between two plans needs to protect neither source nor target from
    those that follow. Neither call waits for the device.

    Attributes:
        blocks: For each group uint8 [blocks, bytes of a page]: what was saved is there once `done` says so; what is to be loaded
            must stay until then.
    """

    @property
    def blocks(self) -> Sequence[Bytes]: ...

    def save(self, moves: Sequence[Moves]) -> Any:
        """Copy pages of each group to its blocks. Returns a handle for `done`."""
        ...

    def load(self, moves: Sequence[Moves]) -> Any:
        """Copy blocks of each group to its pages. Returns a handle for `done`."""
        ...

    def done(self, handle: Any) -> bool:
        """Whether the device has come so far."""
        ...
