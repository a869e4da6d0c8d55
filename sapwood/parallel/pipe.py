"""The way of hidden states from one stage of a pipeline to the next.

Suffix legend: T tokens, E hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from sapwood.parallel.segment import Segment

_DIST: Any = distributed  # whose annotations leave out what is used here
STATES, YIELDS = range(2)
"""The boxes of a rank."""


class SharedPipe:
    """Keeps the protocol `Pipe` in memory that processors share. Each stage has `width` ranks, and each of them speaks with the one at its
    place in the next. Raises Lost where a rank is."""

    def __init__(self, segment: Segment, width: int) -> None:
        self._segment, self._width = segment, width
        self.number, self.count = segment.rank // width, segment.size // width

    def take(self, like_TE: Tensor) -> Tensor:
        self._segment.fetch(STATES, _bytes(like_TE))
        return like_TE

    def give(self, x_TE: Tensor) -> None:
        self._segment.put(self._segment.rank + self._width, STATES, _bytes(x_TE.contiguous()))


class CollectivePipe:
    """Keeps the protocol `Pipe` by a process group of PyTorch: NCCL between GPUs, gloo between processors. `path` is a file by which ranks find
    each other."""

    def __init__(self, backend: str, path: Path, rank: int, size: int, width: int) -> None:
        self._rank, self._width = rank, width
        self.number, self.count = rank // width, size // width
        store = _DIST.FileStore(str(path), size)
        if backend == "nccl":
            self._group: Any = _DIST.ProcessGroupNCCL(store, rank, size, _DIST.ProcessGroupNCCL.Options())
        else:
            self._group = _DIST.ProcessGroupGloo(store, rank, size)

    def take(self, like_TE: Tensor) -> Tensor:
        self._group.recv([like_TE], self._rank - self._width, 0).wait()
        return like_TE

    def give(self, x_TE: Tensor) -> None:
        self._group.send([x_TE.contiguous()], self._rank + self._width, 0).wait()


def _bytes(x_TE: Tensor) -> memoryview:
    """Its own memory."""
    flat: memoryview = x_TE.view(torch.uint8).numpy().reshape(-1).data
    return flat
