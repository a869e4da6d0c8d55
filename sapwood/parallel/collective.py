"""Ranks by a process group of PyTorch: NCCL between GPUs, gloo between processors.

The group is nobody's default, so that several engines may have one each in a process.

Suffix legend: T tokens, E hidden size, V vocabulary, W the part of it that one rank has.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed

_DIST: Any = distributed  # whose annotations leave out what is used here
_PATIENCE = timedelta(minutes=5)


class Collective:
    """Keeps the protocol `Mesh`. Ranks find each other by a file at `path`, which must not be there before."""

    def __init__(self, backend: Literal["nccl", "gloo"], path: Path, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        store = _DIST.FileStore(str(path), size)
        if backend == "nccl":
            self._group: Any = _DIST.ProcessGroupNCCL(store, rank, size, _DIST.ProcessGroupNCCL.Options())
        else:
            self._group = _DIST.ProcessGroupGloo(store, rank, size, _PATIENCE)

    def sum(self, x_TE: Tensor) -> Tensor:
        x_TE = x_TE.contiguous()
        self._group.allreduce([x_TE]).wait()
        return x_TE

    def gather(self, x_TW: Tensor, widths: Sequence[int]) -> Tensor:
        """All have as many columns as the widest while they travel."""
        padded_TW = torch.nn.functional.pad(x_TW, (0, max(widths) - x_TW.shape[1])).contiguous()
        found = [torch.empty_like(padded_TW) for _ in widths]
        self._group.allgather([found], [padded_TW]).wait()
        return torch.cat([one_TW[:, :width] for one_TW, width in zip(found, widths, strict=True)], dim=1)
