"""Steps of several rows through a model of either kind, without a runner: what comes of sequences however they are cut, mixed
and share pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.attention.base import Batch, RowLimits

PAGE_SIZE = 16
SLOT_PAGES = 6
NUM_SLOTS = 4
NUM_PAGES = NUM_SLOTS * SLOT_PAGES + 1

Row = tuple[int, int, Sequence[int]]
"""(slot, position of the first token, tokens)"""


def table(*shared: tuple[int, int, int]) -> Tensor:
    """Pages of each slot; for each of (slot, other, number) the slot's first pages are the other's."""
    table_SP = torch.arange(NUM_SLOTS * SLOT_PAGES, dtype=torch.int32).view(NUM_SLOTS, SLOT_PAGES) + 1
    for slot, other, number in shared:
        table_SP[slot, :number] = table_SP[other, :number]
    return table_SP


def batch(rows: Sequence[Row], table_SP: Tensor, num_groups: int) -> Batch:
    slots = torch.tensor([slot for slot, _, _ in rows], dtype=torch.int32)
    counts = np.array([len(tokens) for _, _, tokens in rows])
    positions = torch.cat([torch.arange(start, start + len(tokens)) for _, start, tokens in rows])
    slots_T = torch.from_numpy(np.repeat(slots.numpy(), counts)).long()
    cells = table_SP[slots_T, positions // PAGE_SIZE].long() * PAGE_SIZE + positions % PAGE_SIZE
    return Batch(
        ids_T=torch.tensor([token for _, _, tokens in rows for token in tokens]),
        positions_T=positions,
        slots_R=slots,
        starts_R=torch.tensor([start for _, start, _ in rows], dtype=torch.int32),
        counts_R=torch.from_numpy(counts).int(),
        offsets_R1=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])).int(),
        tables_GSP=[table_SP] * num_groups,
        cells_GT=[cells] * num_groups,
        limits=RowLimits(decodes=int((counts == 1).sum()), spans=int((counts > 1).sum())),
    )


@torch.inference_mode()
def feed(model: Any, backends: Sequence[Any], steps: Sequence[Sequence[Row]], table_SP: Tensor) -> dict[int, Tensor]:
    """Float32 logits of each slot's tokens, in the order that they were fed."""
    found: dict[int, list[Tensor]] = {}
    for rows in steps:
        made = batch(rows, table_SP, len(backends))
        for backend in backends:
            backend.plan(made)
        parts = model.logits(model(made)).split([len(tokens) for _, _, tokens in rows])
        for (slot, _, _), part in zip(rows, parts, strict=True):
            found.setdefault(slot, []).append(part)
    return {slot: torch.cat(parts) for slot, parts in found.items()}
