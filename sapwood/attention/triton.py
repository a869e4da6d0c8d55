"""Attention on CUDA devices with the kernels of `sapwood.kernels.triton`: `place`, `deal` and `paged`.

Rows that yield, spans and runs of shared pages are mixed freely; each kind is one launch, left out when the
step has none. Long prompt chunks are left to cuDNN (`sapwood.attention.cudnn`) where it is at hand. Launch sizes follow from the numbers of tokens, rows and tiles alone, and `plan` deals out the work on
the device, so that a launch made for the worst case of a bucket serves every step that fits it.

Suffix legend: T tokens of the step, R rows, Q queries of rows that yield, J items, W words of an item, H query heads, K KV heads, G query heads per KV
head, X = H + 2K heads side by side, D head size, M rows of a tile or memberships, C cells or pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sapwood.attention.base import Batch, Shared, heads_of, slopes_of, tile_members
from sapwood.attention.cudnn import Cudnn
from sapwood.attention.scaled import MOST
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup, page_size_problem
from sapwood.base.plan import RUN_LEVELS
from sapwood.device import abilities_of
from sapwood.kernels import NormRope
from sapwood.kernels.triton import deal, paged, pdl
from sapwood.kernels.triton.place import place

_LOG2E = math.log2(math.e)
_JOINED = 8192  # elements of parts that a program reads at once: their loads are all on the way together


@dataclass(frozen=True)
class Shape:
    """How a kernel of `paged` is compiled: rows of a tile (queries x heads), positions of a block, warps, pipeline stages.

    `programs` is how many of them a processor holds at once: so many parts fill the device. A part has `least` positions:
    fewer are not worth the merge.
    """

    rows: int
    block: int
    warps: int
    stages: int
    programs: int = 2
    least: int = 128


@dataclass(frozen=True)
class Shapes:
    """Of rows of one token, of rows where some have drafts, of spans and of runs. `dense`: the keys and values of a span's own
    tokens are read where the projection left them, not from pages, and with `tma` through descriptors."""

    rows: Shape
    drafted: Shape
    spans: Shape
    runs: Shape
    dense: bool = True
    tma: bool = True


def shapes(repeat: int, tile: int, head: int, itemsize: int) -> Shapes:
    """For `repeat` query heads per KV head of padded size `head` and shared runs in tiles of `tile` members, in the dtype
    that is computed in.

    Rows of one token are bound by memory: small tiles, many blocks in flight. Spans, and runs that many share, are bound
    by the matrix units: tiles as large as registers and shared memory allow. A matrix product has at least 16 rows.
    Float32 has no exact matrix unit: its products live in registers.
    """
    least, members = triton.next_power_of_2(repeat), max(16, triton.next_power_of_2(tile * repeat))
    if itemsize == 4:
        return Shapes(
            Shape(max(16, least), 16, 4, 2),
            Shape(max(16, least), 16, 4, 2),
            Shape(max(32, least), 32, 8, 2, 1),
            Shape(members, 16, 8, 2),
            tma=False,
        )
    if head > 128:
        return Shapes(
            Shape(max(16, least), 32, 4, 3),
            Shape(max(32, least), 32, 4, 2),
            Shape(max(64, least), 32, 4, 2),
            Shape(members, 32, 8, 2),
            tma=False,
        )
    return Shapes(
        Shape(max(16, least), 64, 4, 3, 3),
        Shape(max(64, least), 64, 4, 3, 2, 256),
        Shape(max(128, least), 64, 4 if head <= 64 else 8, 3, 1),
        # In few parts, for every one is read again by each of the members.
        Shape(members, 64, 8, 3, 1, 512) if members > 64 else Shape(members, 64, 4, 3, 2, 512),
    )


@dataclass(frozen=True, eq=False)
class _Dealt:
    """The items of one launch. `parts_JKMD` and `lse_JKM` are where parts are left, and `arrived_JK` counts those that
    are to be joined; all are None if every tile is whole."""

    items_JW: Tensor
    tile: int
    parts_JKMD: Tensor | None
    lse_JKM: Tensor | None
    arrived_JK: Tensor | None
    tokens_M: Tensor | None = None
    places_M2: Tensor | None = None
    used_1: Tensor | None = None


class Triton:
    """Keys and values lie as [layer, page, KV head, cell of the page, D]; their scales, where there are any, without D."""

    name = "triton"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int8):
            return f"it stores keys and values as float16, bfloat16, float32, float8_e4m3fn or int8, not {dtype}"
        if dtype == torch.float8_e4m3fn and Ability.FP8 not in abilities_of(device):
            return f"{device} does not convert float8_e4m3fn"
        heads = heads_of(group)
        if heads.head_dim > 256:
            return f"its tiles hold heads of at most 256, and the model's have {heads.head_dim}"
        problem = page_size_problem(group.page_size)
        return problem and f"the page size {problem}"

    def __init__(
        self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype, *, scaled: bool = False
    ) -> None:
        assert scaled or dtype != torch.int8, "integers have scales"
        self._group, self._index, self._device, self._dtype = group, index, device, dtype
        self._scaled = scaled
        self._kind = heads = heads_of(group)
        self._repeat = heads.num_heads // heads.num_kv_heads
        self._head_pad = max(16, triton.next_power_of_2(heads.head_dim))
        self.shapes = shapes(self._repeat, tile_members([group]), self._head_pad, max(2, dtype.itemsize))
        self._cap = 0.0 if heads.cap is None else heads.cap * _LOG2E
        slopes_H = slopes_of(heads, device)
        self._slopes_H = None if slopes_H is None else slopes_H * _LOG2E
        self._pdl, self._tma = pdl.supported(device), True
        self._cudnn = Cudnn.make(group, device, dtype)
        abilities = abilities_of(device)
        self._compiled = Ability.TRITON in abilities
        if self._compiled:
            self._num_processors = torch.cuda.get_device_properties(device).multi_processor_count
            self._tma = Ability.TMA in abilities
        else:  # the interpreter, which stands for a small device, so that tests see parts
            self._num_processors = 4
            rows, drafted, spans, runs = (
                replace(getattr(self.shapes, kind), least=0) for kind in ("rows", "drafted", "spans", "runs")
            )
            self.shapes = replace(self.shapes, rows=rows, drafted=drafted, spans=spans, runs=runs, tma=True)

    def allocate(self, num_pages: int) -> None:
        group, heads = self._group, self._kind
        shape = (group.num_layers, num_pages, heads.num_kv_heads, group.page_size, heads.head_dim)
        self._keys = torch.zeros(shape, dtype=self._dtype, device=self._device)
        self._values = torch.zeros_like(self._keys)
        self._key_scales, self._value_scales = (
            torch.zeros(shape[:-1], device=self._device) if self._scaled else None for _ in range(2)
        )
        if self._cudnn is not None:
            self._cudnn.allocate(num_pages)

    def pools(self) -> Sequence[Tensor]:
        pools = (self._keys, self._values, self._key_scales, self._value_scales)
        return [pool for pool in pools if pool is not None]

    # ---- once per step

    def plan(self, batch: Batch) -> None:
        self._batch = batch
        self._rows_shape = self.shapes.rows if batch.heads_R is None else self.shapes.drafted
        self._shared = batch.shared if self._kind.window is None and batch.limits.decodes else None
        self._rows = self._deal_rows() if batch.limits.decodes else None
        self._runs = None if self._shared is None else self._deal_runs(self._shared)
        self._by_cudnn = (
            batch.limits.spans > 0
            and self._cudnn is not None
            and self._cudnn.plan(batch, batch.tables_GSP[self._index], self._values)
        )
        self._spans = self._deal_spans() if batch.limits.spans and not self._by_cudnn else None

    def _deal_rows(self) -> _Dealt:
        batch, shape, num_rows = self._batch, self._rows_shape, len(self._batch.counts_R)
        tile, num_tiles = 1, num_rows
        if batch.heads_R is not None:
            tile = shape.rows // self._repeat
            num_tiles += len(batch.ids_T) // tile
        most = max(self._fill(shape), num_rows // 2)  # a row among many is split if it is twice as long as the mean
        dealt = self._room(num_tiles + most, tile)
        self._deal(dealt, shape, most, spans=False)
        return dealt

    def _deal_runs(self, shared: Shared) -> _Dealt:
        shape, num_tiles, num_members = self.shapes.runs, len(shared.lows_I), len(shared.tokens_M)
        most = max(self._fill(shape), num_tiles // 2)
        new = torch.empty(1 + 2 * num_members, dtype=torch.int32, device=self._device)
        used_1, places_M2 = new.split((1, 2 * num_members))
        dealt = self._room(num_tiles + most, shared.tile, joined=False)
        dealt = replace(dealt, used_1=used_1, tokens_M=shared.tokens_M, places_M2=places_M2)
        deal.deal_runs[(num_tiles,)](
            shared.lows_I, shared.highs_I, shared.firsts_I, shared.sizes_I, shared.slots_I, dealt.items_JW, places_M2, used_1,
            num_tiles, most, self._least(shape),
            N=shape.block, MEMBERS=shared.tile, PAD=(pad := self._pad(num_tiles)), PDL=self._pdl,
            num_warps=_deal_warps(pad), launch_pdl=self._pdl,
        )  # fmt: skip
        return dealt

    def _deal_spans(self) -> _Dealt:
        batch, shape = self._batch, self.shapes.spans
        tile = shape.rows // self._repeat
        num_tiles = len(batch.ids_T) // tile + batch.limits.spans
        most = max(0, self._fill(shape) - num_tiles)
        dealt = self._room(num_tiles + most, tile, parts=most > 0)
        self._deal(dealt, shape, most, spans=True)
        return dealt

    def _deal(self, dealt: _Dealt, shape: Shape, most: int, *, spans: bool) -> None:
        batch, num_rows = self._batch, len(self._batch.counts_R)
        privates_Q = None if spans or self._shared is None else self._shared.privates_Q
        deal.deal_rows[(1,)](
            batch.slots_R, batch.starts_R, batch.counts_R, batch.heads_R, batch.offsets_R1, privates_Q, dealt.items_JW,
            dealt.arrived_JK, num_rows, len(dealt.items_JW), most, self._least(shape),
            WINDOW=self._kind.window or 0, SHARED=privates_Q is not None, SPANS=spans, QUERIES=dealt.tile,
            N=shape.block, ALIGN=self._align(shape), K=self._kind.num_kv_heads, PAD=(pad := self._pad(num_rows)),
            PDL=self._pdl, num_warps=_deal_warps(pad), launch_pdl=self._pdl,
        )  # fmt: skip

    def _fill(self, shape: Shape) -> int:
        """Items that fill the device, each being a program per KV head."""
        return max(1, self._num_processors * shape.programs // self._kind.num_kv_heads)

    def _least(self, shape: Shape) -> int:
        """In blocks."""
        return max(1, shape.least // shape.block)

    def _align(self, shape: Shape) -> int:
        """A block starts at a multiple of this, and does not leave a page that is no smaller than it."""
        return min(shape.block, self._group.page_size)

    def _pad(self, count: int) -> int:
        """Three sizes for most steps, since each is compiled."""
        most = len(self._batch.tables_GSP[self._index]) - 1  # rows that there can be
        return 64 if count <= 64 else triton.next_power_of_2(max(count, min(most, 256) if count <= 256 else most))

    def _room(
        self,
        num_items: int,
        tile: int,
        *,
        parts: bool = True,
        joined: bool = True,
    ) -> _Dealt:
        heads, device = self._kind, self._device
        items_JW = torch.empty((num_items, deal.ITEM), dtype=torch.int32, device=device)
        if not parts:
            return _Dealt(items_JW, tile, None, None, None)
        rows = (num_items, heads.num_kv_heads, tile * self._repeat)
        parts_JKMD = torch.empty((*rows, heads.head_dim), dtype=torch.float32, device=device)
        lse_JKM = torch.empty(rows, dtype=torch.float32, device=device)
        arrived_JK = torch.empty(rows[:2], dtype=torch.int32, device=device) if joined else None
        return _Dealt(items_JW, tile, parts_JKMD, lse_JKM, arrived_JK)

    # ---- once per layer

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float) -> Tensor:
        heads, shapes = self._kind, self.shapes
        # Float8 in cells and not in the tokens' own keys: what a query sees would depend on where chunks end.
        dense = shapes.dense and self._dtype == heads_TXD.dtype
        place(
            heads_TXD, rope, self._batch.cells_GT[self._index], self._keys[layer], self._values[layer],
            num_heads=heads.num_heads, keep=dense and self._batch.limits.spans > 0,
            scales=self._scales(layer), most=MOST.get(self._dtype, 0.0),
        )  # fmt: skip
        out_THD = torch.empty(
            (len(heads_TXD), heads.num_heads, heads.head_dim), dtype=heads_TXD.dtype, device=heads_TXD.device
        )
        if self._runs is not None:
            self._attend_runs(layer, heads_TXD, scale, self._runs)
        if self._rows is not None:
            self._attend_rows(layer, heads_TXD, out_THD, scale, self._rows)
        if self._by_cudnn:
            assert self._cudnn is not None
            self._by_cudnn = self._cudnn.run(heads_TXD, self._keys[layer], self._values[layer], out_THD, scale)
            if not self._by_cudnn:
                self._spans = self._deal_spans()
        if self._spans is not None:
            self._attend_spans(layer, heads_TXD, out_THD, scale, self._spans, dense=dense)
        return out_THD

    def _attend_runs(self, layer: int, heads_TXD: Tensor, scale: float, dealt: _Dealt) -> None:
        heads, shape, table_SP = self._kind, self.shapes.runs, self._batch.tables_GSP[self._index]
        num_programs = min(len(dealt.items_JW) * heads.num_kv_heads, self._num_processors * shape.programs)
        paged.attend_runs[(num_programs,)](
            heads_TXD, heads_TXD.stride(0), self._keys[layer], self._values[layer], *(self._scales(layer) or (None, None)),
            dealt.parts_JKMD, dealt.lse_JKM,
            dealt.items_JW, dealt.tokens_M, dealt.used_1, table_SP, table_SP.stride(0), scale * _LOG2E,
            self._slopes_H, self._batch.positions_T,
            K=heads.num_kv_heads, G=self._repeat, D=heads.head_dim, PAGE=self._group.page_size, CAP=self._cap,
            TILE=dealt.tile, M=shape.rows, N=shape.block, D_PAD=self._head_pad, PDL=self._pdl,
            PAIRS=self._pairs(heads_TXD), CVT=self._compiled,
            num_warps=shape.warps, num_stages=shape.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _attend_rows(self, layer: int, heads_TXD: Tensor, out_THD: Tensor, scale: float, dealt: _Dealt) -> None:
        heads, shape, table_SP = self._kind, self._rows_shape, self._batch.tables_GSP[self._index]
        runs, shared = self._runs, self._shared
        run_parts, run_lse, places_M2, members_QL, members = None, None, None, None, 1
        if runs is not None and shared is not None:
            run_parts, run_lse, places_M2 = runs.parts_JKMD, runs.lse_JKM, runs.places_M2
            members_QL, members = shared.members_QL, shared.tile
        paged.attend_rows[(heads.num_kv_heads, len(dealt.items_JW))](
            heads_TXD, heads_TXD.stride(0), self._keys[layer], self._values[layer],
            *(self._scales(layer) or (None, None)), out_THD,
            dealt.parts_JKMD, dealt.lse_JKM, dealt.arrived_JK, run_parts, run_lse, members_QL, places_M2,
            dealt.items_JW, table_SP, table_SP.stride(0), scale * _LOG2E, self._slopes_H,
            K=heads.num_kv_heads, G=self._repeat, D=heads.head_dim, PAGE=self._group.page_size,
            WINDOW=heads.window or 0, CAP=self._cap, MEMBERS=members, LEVELS=0 if runs is None else RUN_LEVELS,
            TILE=dealt.tile, M=shape.rows, N=shape.block, **self._joining(dealt.tile * self._repeat),
            ALONE=max(1, _JOINED // (2 * shape.rows * self._head_pad)), D_PAD=self._head_pad, PDL=self._pdl,
            PAIRS=self._pairs(heads_TXD), CVT=self._compiled,
            num_warps=shape.warps, num_stages=shape.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _attend_spans(
        self, layer: int, heads_TXD: Tensor, out_THD: Tensor, scale: float, dealt: _Dealt, *, dense: bool
    ) -> None:
        heads, shape, table_SP = self._kind, self.shapes.spans, self._batch.tables_GSP[self._index]
        tma, kv_TX = dense and self.shapes.tma and self._tma and self._head_pad == heads.head_dim, None
        if tma:
            kv_TX = TensorDescriptor.from_tensor(heads_TXD.flatten(1), [shape.block, heads.head_dim])
        paged.attend_spans[(heads.num_kv_heads, len(dealt.items_JW))](
            heads_TXD, heads_TXD.stride(0), kv_TX, self._keys[layer], self._values[layer],
            *(self._scales(layer) or (None, None)), out_THD,
            dealt.parts_JKMD, dealt.lse_JKM, dealt.arrived_JK, dealt.items_JW, table_SP, table_SP.stride(0),
            scale * _LOG2E, self._slopes_H,
            K=heads.num_kv_heads, G=self._repeat, D=heads.head_dim, PAGE=self._group.page_size,
            WINDOW=heads.window or 0, CAP=self._cap, DENSE=dense, TMA=tma, TILE=dealt.tile, M=shape.rows, N=shape.block,
            **self._joining(dealt.tile * self._repeat), D_PAD=self._head_pad, PDL=self._pdl,
            num_warps=shape.warps, num_stages=shape.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _joining(self, rows: int) -> dict[str, int]:
        """How a tile of so many rows reads its parts."""
        padded = triton.next_power_of_2(rows)
        return {"S": max(1, _JOINED // (padded * self._head_pad)), "R": padded}

    def _scales(self, layer: int) -> tuple[Tensor, Tensor] | None:
        if self._key_scales is None or self._value_scales is None:
            return None
        return self._key_scales[layer], self._value_scales[layer]

    def _pairs(self, heads_TXD: Tensor) -> bool:
        return self._dtype.itemsize == 1 and heads_TXD.dtype.itemsize == 2


def _deal_warps(pad: int) -> int:
    return min(8, pad // 64)
