"""Attention on CUDA devices with the kernels of `sapwood.kernels.triton.paged`.

Decode rows and longer spans are mixed freely; each kind is one launch, left out when the step has none. Launch sizes
follow from the numbers of tokens, rows and longer spans alone, and `plan` fills tensors of those sizes on the device,
so that a launch made for the worst case of a bucket serves every step that fits it.

Suffix legend: T tokens of the step, R rows, S splits, H query heads, K KV heads, D head size, C cells or pages, I tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from sapwood.attention.base import Batch, turned
from sapwood.base.kv import KVGroup
from sapwood.kernels import Turn, choose
from sapwood.kernels.triton import paged

MOST_SPLITS = 64
LEAST_SPLITS = 4
"""Splits are how a long row among many is shared out, even when there are rows enough for all processors."""


@dataclass(frozen=True)
class _Shape:
    """How `attend` is compiled: rows of a tile (queries x heads), positions of a block, warps, pipeline stages."""

    rows: int
    block: int
    warps: int
    stages: int


def _decode_shape(repeat: int, head: int, itemsize: int) -> _Shape:
    """Bound by memory: small tiles, many blocks in flight. A matrix product has at least 16 rows.

    `head` is the padded head size. Float32 has no exact matrix unit: its products live in registers.
    """
    rows = max(16, triton.next_power_of_2(repeat))
    if itemsize == 4:
        return _Shape(rows, 16, 4, 2)
    return _Shape(rows, 64 if head <= 128 else 32, 4, 3)


def _span_shape(repeat: int, head: int, itemsize: int) -> _Shape:
    """Bound by the matrix units: tiles as large as registers and shared memory allow."""
    least = triton.next_power_of_2(repeat)
    if itemsize == 4:
        return _Shape(max(32, least), 32, 8, 2)
    if head > 128:
        return _Shape(max(64, least), 32, 4, 2)
    return _Shape(max(128, least), 64, 4 if head <= 64 else 8, 3)


class Triton:
    """Keys and values lie as [layer, page, KV head, cell of the page, D]."""

    name = "triton"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda":
            return f"its kernels run on CUDA devices, and the device is {device}"
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"it stores keys and values as float16, bfloat16 or float32, not {dtype}"
        if group.head_dim > 256:
            return f"its tiles hold heads of at most 256, and the model's have {group.head_dim}"
        if group.page_size & (group.page_size - 1):
            return f"the page size must be a power of two, and is {group.page_size}"
        return None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        self._group, self._index, self._device, self._dtype = group, index, device, dtype
        self._repeat = group.num_heads // group.num_kv_heads
        self._kernels = choose(device)
        # The interpreter, on a CPU, stands for a device of a few processors, so that tests see splits.
        is_cuda = device.type == "cuda"
        self._num_processors = torch.cuda.get_device_properties(device).multi_processor_count if is_cuda else 8
        self._head_pad = max(16, triton.next_power_of_2(group.head_dim))
        facts = self._repeat, self._head_pad, dtype.itemsize
        self._decode, self._span = _decode_shape(*facts), _span_shape(*facts)
        self._tile_queries = self._span.rows // self._repeat

    def allocate(self, num_pages: int) -> None:
        group = self._group
        shape = (group.num_layers, num_pages, group.num_kv_heads, group.page_size, group.head_dim)
        self._keys = torch.zeros(shape, dtype=self._dtype, device=self._device)
        self._values = torch.zeros_like(self._keys)

    def copy(self, sources_C: Tensor, targets_C: Tensor) -> None:
        for pages in (self._keys, self._values):
            pages.index_copy_(1, targets_C, pages.index_select(1, sources_C))

    # ---- once per step

    def plan(self, batch: Batch) -> None:
        self._batch = batch
        num_rows, num_tokens, num_spans = len(batch.counts_R), len(batch.ids_T), batch.limits.spans
        self._has_decode = batch.limits.decodes > 0
        self._tiles = None
        if num_spans:
            self._tiles = self._map_tiles(batch.counts_R, num_tokens // self._tile_queries + num_spans)
        if self._has_decode:
            self._plan_splits(num_rows)

    def _map_tiles(self, counts_R: Tensor, num_tiles: int) -> tuple[Tensor, Tensor]:
        """Row (-1 for none) and first query of each tile of the rows of several queries.

        `num_tiles` bounds the sum over those rows of ceil(count / tile_queries).
        """
        tiles_R = (counts_R + (self._tile_queries - 1)).div(self._tile_queries, rounding_mode="floor")
        tiles_R = tiles_R * (counts_R > 1)
        ends_R = tiles_R.cumsum(0)
        tile_I = torch.arange(num_tiles, device=self._device)
        rows_I = torch.searchsorted(ends_R, tile_I, right=True)
        known_I = rows_I.clamp(max=len(counts_R) - 1)
        first_I = (tile_I - (ends_R - tiles_R)[known_I]) * self._tile_queries
        return torch.where(rows_I < len(counts_R), rows_I, -1).int(), first_I.int()

    def _plan_splits(self, num_rows: int) -> None:
        """Enough programs to fill the device four times over; with rows enough, only long rows are split."""
        group, programs = self._group, num_rows * self._group.num_kv_heads
        wanted = triton.next_power_of_2(-(-4 * self._num_processors // programs))
        self._num_splits = min(MOST_SPLITS, max(LEAST_SPLITS, wanted))
        fills = programs >= 2 * self._num_processors
        self._least_blocks = 1024 // self._decode.block if fills else 2
        shape = (num_rows, group.num_heads, self._num_splits)
        self._partial_RHSD = torch.empty((*shape, group.head_dim), dtype=torch.float32, device=self._device)
        self._lse_RHS = torch.empty(shape, dtype=torch.float32, device=self._device)

    # ---- once per layer

    def run(self, layer: int, heads_TXD: Tensor, turn: Turn, scale: float) -> Tensor:
        group = self._group
        q_THD, k_TKD, v_TKD = (_token_rows(x) for x in turned(heads_TXD, turn, group, self._kernels))
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        size = group.num_kv_heads * group.head_dim
        paged.write[(len(k_TKD),)](
            k_TKD, v_TKD, k_TKD.stride(0), v_TKD.stride(0), self._batch.cells_GT[self._index],
            self._keys[layer], self._values[layer],
            K=group.num_kv_heads, D=group.head_dim, PAGE=group.page_size, BLOCK=triton.next_power_of_2(size),
            num_warps=4 if size <= 2048 else 8,
        )  # fmt: skip
        if self._has_decode:
            self._attend_decode(layer, q_THD, out_THD, scale)
        if self._tiles is not None:
            self._attend(layer, q_THD, out_THD, scale, self._span, self._tile_queries, self._tiles)
        return out_THD

    def _attend_decode(self, layer: int, q_THD: Tensor, out_THD: Tensor, scale: float) -> None:
        self._attend(layer, q_THD, out_THD, scale, self._decode, 1, None)
        batch, group = self._batch, self._group
        paged.merge[(len(batch.counts_R), group.num_heads)](
            self._partial_RHSD, self._lse_RHS, out_THD, batch.starts_R, batch.counts_R, batch.offsets_R1,
            self._num_splits, self._least_blocks,
            D=group.head_dim, WINDOW=group.window or 0, N=self._decode.block,
            S=triton.next_power_of_2(self._num_splits), D_PAD=self._head_pad, num_warps=2,
        )  # fmt: skip

    def _attend(
        self,
        layer: int,
        q_THD: Tensor,
        out_THD: Tensor,
        scale: float,
        shape: _Shape,
        queries: int,
        tiles: tuple[Tensor, Tensor] | None,
    ) -> None:
        """`tiles` None is decode: a tile per row, split."""
        batch, group = self._batch, self._group
        table_SP = batch.tables_GSP[self._index]
        num_tiles, num_splits = (len(batch.counts_R), self._num_splits) if tiles is None else (len(tiles[0]), 1)
        rows_I, queries_I = tiles or (None, None)
        partial, lse = (self._partial_RHSD, self._lse_RHS) if tiles is None else (None, None)
        grid = (num_tiles, group.num_kv_heads, num_splits)
        paged.attend[grid](
            q_THD, q_THD.stride(0), self._keys[layer], self._values[layer], out_THD, partial, lse,
            rows_I, queries_I, batch.slots_R, batch.starts_R, batch.counts_R, batch.offsets_R1, table_SP, table_SP.stride(0),
            scale * math.log2(math.e), self._least_blocks if tiles is None else 1,
            K=group.num_kv_heads, G=self._repeat, D=group.head_dim, PAGE=group.page_size, WINDOW=group.window or 0,
            DECODE=tiles is None, QUERIES=queries, M=shape.rows, N=shape.block, D_PAD=self._head_pad,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip


def _token_rows(x_TXD: Tensor) -> Tensor:
    """The tensor with each token's heads side by side in memory; tokens may lie apart."""
    tight = x_TXD.stride(2) == 1 and x_TXD.stride(1) == x_TXD.shape[2]
    return x_TXD if tight else x_TXD.contiguous()
