"""Models computed by the CPU's own kernels, without a runner; skipped where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.arch import Decoder, declare
from sapwood.arch.groups import kv_groups
from sapwood.attention.base import Batch, RowLimits
from sapwood.attention.native import Native
from sapwood.attention.native_latent import NativeLatent
from sapwood.attention.native_states import NativeStates
from sapwood.attention.native_whole import NativeWhole
from sapwood.base.kv import Heads, Latent, State, Whole
from sapwood.hub.files import open_files
from sapwood.kernels.cpu.library import Machine, find
from sapwood.nn.adapted import Bank
from sapwood.nn.load import load_weights
from sapwood.nn.native import NativeModel
from sapwood.quant import methods
from sapwood.quant.base import everywhere
from sapwood.quant.methods import METHODS
from sapwood.quant.packed import Packed, Rounded
from sapwood.quant.plain import Plain
from sapwood.quant.repacked import repacked

PAGE_SIZE = 16
SLOT_PAGES = 16
NUM_SLOTS = 4
KEEPS: Mapping[type, Any] = MappingProxyType(
    {Heads: Native, Latent: NativeLatent, State: NativeStates, Whole: NativeWhole}
)


def machine(build: str = "auto", *, fine: bool = True) -> Machine:
    library = find(build)
    if isinstance(library, str):
        pytest.skip(library)
    return Machine(library, 2, fine=fine)


def empty(
    decoder: Decoder,
    machine: Machine,
    *,
    dtype: torch.dtype = torch.float32,
    rounded: Rounded | None = None,
    bank: Bank | None = None,
) -> NativeModel:
    """The model without its weights; `dtype` is that of its keys and values."""
    groups = kv_groups(decoder, PAGE_SIZE)
    backends = [
        KEEPS[type(group.kind)](group, i, torch.device("cpu"), dtype, machine) for i, group in enumerate(groups)
    ]
    for backend in backends:
        backend.allocate(NUM_SLOTS * SLOT_PAGES + 1)
    choice = methods.of(decoder.quantization, everywhere(Plain()))
    method = repacked(choice, Packed(machine, rounded))
    return NativeModel(decoder, backends, machine, method if bank is None else bank.around(method), bank=bank)


def load(path: Path, machine: Machine, **options: Any) -> NativeModel:
    """The model of a directory or GGUF file."""
    files = open_files(path, name=path.name)
    model = empty(declare(files.config, methods=METHODS), machine, **options)
    load_weights(model, files)
    return model


def batch(model: NativeModel, rows: Sequence[tuple[int, int, Sequence[int]]]) -> Batch:
    """Rows of (slot, start, tokens)."""
    return batch_of(rows, groups=len(model._backends))


def batch_of(rows: Sequence[tuple[int, int, Sequence[int]]], *, groups: int) -> Batch:
    """The same for so many KV groups."""
    table_SP = torch.arange(NUM_SLOTS * SLOT_PAGES, dtype=torch.int32).view(NUM_SLOTS, SLOT_PAGES) + 1
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
        tables_GSP=[table_SP] * groups,
        cells_GT=[cells] * groups,
        limits=RowLimits(decodes=0, spans=len(rows)),
    )


@torch.inference_mode()
def logits(model: NativeModel, tokens: Sequence[int], cuts: Sequence[int] = ()) -> Tensor:
    """float32 [len(tokens), vocabulary] of one sequence, fed in spans that end at the cuts."""
    ends = [*cuts, len(tokens)]
    starts = [0, *cuts]
    parts = [
        model.logits(model(batch(model, [(1, start, tokens[start:end])])))
        for start, end in zip(starts, ends, strict=True)
    ]
    return torch.cat(parts)
