"""What attention backends share: the batch they read and the protocol they keep.

Suffix legend: T tokens of the step, R rows, S slots of the table, P pages per slot, H query heads, K KV heads,
D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sapwood.base.kv import KVGroup
from sapwood.base.plan import Ints


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything that one forward reads. Tokens are flat: row r's are [offsets_R1[r], offsets_R1[r + 1]).

    Device tensors: `ids_T` and `positions_T` int64; `slots_R`, `starts_R` (first position of the span), `counts_R`
    int32; `offsets_R1` int32 with R + 1 entries; `tables_GSP` one int32 page table per KV group, addressed by slot;
    `cells_GT` one int64 vector per group, the flat KV cell (page * page_size + offset) of each token.
    Host copies for planning, upper bounds of the device's: `host_slots_R`, `host_starts_R`, `host_counts_R`.
    """

    ids_T: Tensor
    positions_T: Tensor
    slots_R: Tensor
    starts_R: Tensor
    counts_R: Tensor
    offsets_R1: Tensor
    tables_GSP: Sequence[Tensor]
    cells_GT: Sequence[Tensor]
    host_slots_R: Ints
    host_starts_R: Ints
    host_counts_R: Ints


class Backend(Protocol):
    """The keys and values of one KV group, and attention over them.

    Order of calls: `allocate` once; then per step `plan` once and `run` once per layer. `run` writes the step's keys
    and values to their cells before anything reads them, so a row may attend to what another row of the same step
    computes.
    """

    name: str

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this backend cannot serve the group there, or None."""
        ...

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        """`index` is the group's place in Batch.tables_GSP; `dtype` that of the stored keys and values."""
        ...

    def allocate(self, num_pages: int) -> None:
        """Take the memory of `num_pages` pages. Page 0 is never given to a request: padding may write there."""
        ...

    def plan(self, batch: Batch) -> None:
        """Derive once per step what every layer's `run` needs."""
        ...

    def run(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scale: float) -> Tensor:
        """Write keys and values of the group's `layer`-th layer, attend causally, return out_THD (q's dtype).

        Position p sees positions max(0, p - window + 1) .. p of its own slot.
        """
        ...

    def copy(self, sources_C: Tensor, targets_C: Tensor) -> None:
        """Copy whole pages, all layers: int64 device tensors of page numbers, sources and targets disjoint."""
        ...
