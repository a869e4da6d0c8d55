"""States of recurrences where the CPU's own kernels read them: the reference's pages.

Only decoders that are computed as a whole use those kernels; modules get what the reference computes.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from sapwood.attention.base import Batch
from sapwood.attention.native import InLibrary
from sapwood.attention.states import States
from sapwood.base.kv import KVGroup
from sapwood.kernels.cpu.library import Handle, Machine, address


class NativeStates(InLibrary, States):
    """One group's states."""

    name = "native-states"

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype, machine: Machine) -> None:
        super().__init__(group, index, device, dtype)
        self.index = index
        self.cells = Handle(machine.library, "states", group.page_size, group.cells)
        self._batch: Batch | None = None

    def allocate(self, num_pages: int) -> None:
        super().allocate(num_pages)
        for kept, shape in zip(self._kept, self._shapes, strict=True):
            self.cells.library.states_place(self.cells.pointer, address(kept), prod(shape), kept.shape[1])

    def plan(self, batch: Batch) -> None:
        self._batch = batch  # which is not needed by those who compute whole decoders

    def conv(self, *arguments: Any) -> Tensor:
        self._catch_up()
        return super().conv(*arguments)

    def scan(self, *arguments: Any) -> Tensor:
        self._catch_up()
        return super().scan(*arguments)

    def _catch_up(self) -> None:
        if self._batch is not None:
            super().plan(self._batch)
            self._batch = None
