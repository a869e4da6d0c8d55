"""What encoders leave for cross-attention, where the CPU's own kernels read it: a page for each input, keys of 16 positions transposed.

Suffix legend: T tokens of the step, L positions of an input, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint8
from math import prod

import torch
from torch import Tensor

from sapwood.attention.base import Batch
from sapwood.attention.fixed import Entries
from sapwood.attention.native import STORES, TILE
from sapwood.base.kv import Fixed
from sapwood.kernels.cpu.library import Handle, Machine, Step, address


class NativeEntries(Entries):
    """Keys and values of `entries` inputs, in one of the dtypes that the library stores."""

    def __init__(
        self,
        kind: Fixed,
        machine: Machine,
        *,
        num_layers: int,
        entries: int,
        longest: int,
        num_slots: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(entries=entries, longest=longest, num_slots=num_slots, device=torch.device("cpu"))
        page = -(-longest // TILE) * TILE
        sizes = kind.num_heads, kind.num_heads, kind.head_dim
        self._machine, self._shape, self._dtype = machine, (2, kind.num_heads, kind.head_dim), dtype
        self._tiles = num_layers, kind.num_heads, entries + 1, page // TILE, -(-kind.head_dim // TILE) * TILE, TILE
        self._queries: Tensor | None = None  # [layer, T, H, D] of a step of which somebody wants to know how it looks
        self.cells = Handle(machine.library, "cells", STORES[dtype], num_layers, *sizes, 0, page)
        machine.library.cells_fixed(self.cells.pointer)
        if not machine.library.cells_allocate(self.cells.pointer, entries + 1):
            raise MemoryError(f"there is no memory for what {entries} inputs leave")

    def keep(self, layer: int, entry: int, both_L2HD: Tensor) -> None:
        """What a layer makes of an input: keys and values, float32."""
        both_L2HD = both_L2HD.float().contiguous()
        assert both_L2HD.shape[1:] == self._shape and len(both_L2HD) <= self.longest
        self._machine.library.cells_put(
            self._machine.pointer, self.cells.pointer, layer, entry, address(both_L2HD), len(both_L2HD)
        )

    def plan(self, batch: Batch) -> None:
        """The library finds who looks where."""

    def tell(self, step: Step) -> None:
        """Have a step know which entries its slots look at."""
        step.entries, step.lengths = address(self.entries_S), address(self.lengths_E)
        if self.watched:
            self._queries = torch.empty(self._tiles[0], step.num_tokens, *self._shape[1:])
            step.queries = address(self._queries)

    def find(self, scales: Sequence[float]) -> None:
        """Of the step that was computed, what was watched; `scales` are those of the layers' scores."""
        if self._queries is None:
            return
        for watch in self.watched:
            for layer, heads in sorted(watch.heads.items()):
                keys_HLD, q_THD = self._keys(layer, watch.entry), self._queries[layer]
                watch.found.append(self._weights(keys_HLD, watch, heads, q_THD, scales[layer]))
        self._queries = None

    def _keys(self, layer: int, entry: int) -> Tensor:
        """An entry's keys_HLD as floats, up to where its page ends."""
        keys_HLDL = self._memory("keys", self._dtype).view(self._tiles)[layer, :, entry]
        keys_HLD = keys_HLDL.transpose(2, 3).flatten(1, 2)[..., : self._shape[2]].float()
        if self._dtype == torch.int8:
            scales = self._memory("key_scales", torch.float32).view(*self._tiles[:3], -1)
            keys_HLD = keys_HLD * scales[layer, :, entry, :, None]
        return keys_HLD

    def _memory(self, name: str, dtype: torch.dtype) -> Tensor:
        """The kernels' own."""
        number = prod(self._tiles) // (self._tiles[4] if name == "key_scales" else 1)
        start = getattr(self._machine.library, f"cells_{name}")(self.cells.pointer)
        return torch.frombuffer((c_uint8 * (number * dtype.itemsize)).from_address(start), dtype=dtype)
