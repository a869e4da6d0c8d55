"""Attention by the CPU's own kernels: pages of float32, float16 or int8, and runs that rows share read once for all.

Keys of 16 positions lie transposed; a run is read in whole blocks of 64 positions, so that sums have one order; int8 keys
and values have a float32 scale for each position and head.

Suffix legend: T tokens, R rows, S slots, P pages of a slot, H query heads, K KV heads, D head size, F half of the
rotated dimensions, C copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref, c_int64, c_uint8
from typing import Any

import torch
from torch import Tensor

from sapwood.attention.base import Batch, heads_of, slopes_of
from sapwood.base.kv import KVGroup
from sapwood.kernels import NormRope
from sapwood.kernels.cpu.library import Handle, Heads, Machine, Norm, Step, address, pointers

STORES: Mapping[torch.dtype, int] = {torch.float32: 0, torch.float16: 1, torch.int8: 2}
"""The library's numbers of what it can keep."""
TILE = 16
_MOST_SHARING = 64  # `QUERIES` of attention.h


class InLibrary:
    """What keeps pages that the library reads: a decoder that is computed as a whole (`sapwood.nn.native`) reaches those of the
    group, the `index`-th of a batch, by `cells`."""

    index: int
    cells: Handle


class Native(InLibrary):
    """One group's keys and values."""

    name = "native"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype not in STORES:
            return f"it stores keys and values as float32, float16 or int8, not {dtype}"
        if group.page_size % TILE:
            return f"its pages hold multiples of {TILE} tokens, and --page-size is {group.page_size}"
        heads = heads_of(group)
        if heads.relative:
            return "its scores have no learned numbers for distances"
        if heads.chunked:
            return "its masks are of windows, and these layers see chunks"
        if heads.ahead:
            return "its masks are causal, and positions of an image see each other"
        if heads.num_heads > _MOST_SHARING * heads.num_kv_heads:
            sharing = heads.num_heads // heads.num_kv_heads
            return f"at most {_MOST_SHARING} query heads may share a KV head, and the model has {sharing}"
        return None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype, machine: Machine) -> None:
        self._group, self.index, self._machine, self._dtype = group, index, machine, dtype
        self._kind = heads = heads_of(group)
        self.cells = Handle(
            machine.library,
            "cells",
            STORES[dtype],
            group.num_layers,
            heads.num_heads,
            heads.num_kv_heads,
            heads.head_dim,
            heads.window or 0,
            group.page_size,
        )
        if heads.bent:
            slopes_H = slopes_of(heads, device)
            start = None if slopes_H is None else address(slopes_H)
            machine.library.cells_bend(self.cells.pointer, heads.cap or 0.0, start)
        self._num_cells = 0
        self._step: Step | None = None
        self._held: tuple[object, ...] = ()
        self._batch: Batch

    def allocate(self, num_pages: int) -> None:
        if not self._machine.library.cells_allocate(self.cells.pointer, num_pages):
            raise MemoryError(f"there is no memory for {num_pages} pages of keys and values")
        self._num_cells = num_pages * self._group.page_size

    def plan(self, batch: Batch) -> None:
        self._batch, self._step = batch, None

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float, sinks_H: Tensor | None = None) -> Tensor:
        heads = self._kind
        if self._step is None:  # not needed by those who compute whole decoders
            self._step, self._held = step_of(self._batch, [self.index])
        heads_TXD = heads_TXD.float().contiguous()
        cos_TF, sin_TF = rope.cos_TF.contiguous(), rope.sin_TF.contiguous()
        norm = Norm() if rope.norm_ND is None else Norm(address(rope.norm_ND), None, rope.eps, rope.center)
        how = Heads(
            norm,
            cos=address(cos_TF),
            sin=address(sin_TF),
            half=cos_TF.shape[1],
            by_token=1,
            interleaved=rope.interleaved,
            late=rope.late,
            layer=layer,
            sinks=None if sinks_H is None else address(sinks_H),
            scale=scale,
        )
        out_THD = torch.empty(len(heads_TXD), heads.num_heads, heads.head_dim)
        library = self._machine.library
        library.cells_attend(
            self._machine.pointer,
            self.cells.pointer,
            byref(how),
            byref(self._step),
            address(heads_TXD),
            address(out_THD),
        )
        return out_THD

    def pools(self) -> Sequence[Tensor]:
        width = -(-self._kind.head_dim // TILE) * TILE
        pools = [self._pool(name, self._dtype, width) for name in ("keys", "values")]
        if self._dtype == torch.int8:
            pools += [self._pool(name, torch.float32, 1) for name in ("key_scales", "value_scales")]
        return pools

    def _pool(self, name: str, dtype: torch.dtype, width: int) -> Tensor:
        """The kernels' own memory, [layer and KV head, page, what a page holds]."""
        rows = self._group.num_layers * self._kind.num_kv_heads
        number = rows * self._num_cells * width
        start = getattr(self._machine.library, f"cells_{name}")(self.cells.pointer)
        cells = torch.frombuffer((c_uint8 * (number * dtype.itemsize)).from_address(start), dtype=dtype)
        return cells.view(rows, -1, self._group.page_size * width)


def step_of(batch: Batch, groups: Sequence[int]) -> tuple[Step, tuple[Any, ...]]:
    """A batch as the kernels read it, for some of its groups; and what must outlive it beside the batch."""
    tables = [batch.tables_GSP[group] for group in groups]
    cells = [batch.cells_GT[group] for group in groups]
    arrays = (
        pointers([address(table) for table in tables]),
        (c_int64 * len(tables))(*(table.stride(0) for table in tables)),
        pointers([address(one) for one in cells]),
    )
    step = Step(
        num_tokens=int(batch.offsets_R1[-1]),
        num_rows=len(batch.slots_R),
        ids=address(batch.ids_T),
        positions=address(batch.positions_T),
        slots=address(batch.slots_R),
        starts=address(batch.starts_R),
        counts=address(batch.counts_R),
        offsets=address(batch.offsets_R1),
        tables=arrays[0],
        strides=arrays[1],
        cells=arrays[2],
    )
    if (shared := batch.shared) is not None:
        step.num_runs = len(shared.lows_I)
        step.run_lows, step.run_highs = address(shared.lows_I), address(shared.highs_I)
        step.run_firsts, step.run_sizes = address(shared.firsts_I), address(shared.sizes_I)
        step.run_slots, step.run_tokens = address(shared.slots_I), address(shared.tokens_M)
    if batch.heads_R is not None:
        step.heads = address(batch.heads_R)
    if batch.seconds_S is not None:
        step.seconds = address(batch.seconds_S)
    return step, arrays
