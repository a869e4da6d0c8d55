"""Attention on CUDA devices with the kernels of `sapwood.kernels.triton`: `place`, `deal` and `paged`.

Rows that yield, spans and runs of shared pages are dealt out by `sapwood.attention.deals`. Long prompt chunks are left to
cuDNN (`sapwood.attention.cudnn`) where it is at hand.

Suffix legend: T tokens of the step, S slots, P pages of a slot, H query heads, K KV heads, G query heads per KV head, X = H + 2K heads
side by side, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sapwood.attention.base import Batch, heads_of, slopes_of, tile_members, window_told
from sapwood.attention.cudnn import Cudnn
from sapwood.attention.deals import JOINED, Deals, Dealt, Shape, Shapes, Tiles
from sapwood.attention.scaled import MOST, Factors
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup, page_size_problem
from sapwood.base.plan import RUN_LEVELS
from sapwood.device import abilities_of
from sapwood.kernels import NormRope
from sapwood.kernels.triton import paged
from sapwood.kernels.triton.place import place

_LOG2E = math.log2(math.e)


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
        if heads.relative:
            return "its scores have no learned numbers for distances"
        if heads.ahead:
            return "its masks are causal, and positions of an image see each other"
        if heads.head_dim > 256:
            return f"its tiles hold heads of at most 256, and the model's have {heads.head_dim}"
        problem = page_size_problem(group.page_size)
        return problem and f"the page size {problem}"

    def __init__(
        self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype, *, scaled: bool = False
    ) -> None:
        assert scaled or dtype != torch.int8, "integers have scales"
        self._group, self._device, self._dtype = group, device, dtype
        self._scaled = scaled
        self._kind = heads = heads_of(group)
        self._repeat = heads.num_heads // heads.num_kv_heads
        self._head_pad = max(16, triton.next_power_of_2(heads.head_dim))
        cut = shapes(self._repeat, tile_members([group]), self._head_pad, max(2, dtype.itemsize))
        tiles = Tiles(heads.num_kv_heads, self._repeat, heads.head_dim)
        self.deals = deals = Deals(group, index, device, cut, tiles)
        self._pdl, self._compiled = deals.pdl, deals.compiled
        self._cap = 0.0 if heads.cap is None else heads.cap * _LOG2E
        slopes_H = slopes_of(heads, device)
        self._slopes_H = None if slopes_H is None else slopes_H * _LOG2E
        self._factors = Factors(group, device) if dtype == torch.float8_e4m3fn and not scaled else None
        self._cudnn = Cudnn.make(group, device, dtype)

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

    @property
    def factors(self) -> Factors | None:
        return self._factors

    # ---- once per step

    def plan(self, batch: Batch) -> None:
        self._batch = batch
        self.deals.plan(batch)
        self._by_cudnn = (
            batch.limits.spans > 0
            and self._cudnn is not None
            and self._cudnn.plan(batch, self.deals.table_SP, self._values)
        )
        self._spans = None if self._by_cudnn else self.deals.spans()

    # ---- once per layer

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float, sinks_H: Tensor | None = None) -> Tensor:
        heads, deals = self._kind, self.deals
        # Float8 in cells and not in the tokens' own keys: what a query sees would depend on where chunks end.
        dense = deals.shapes.dense and self._dtype == heads_TXD.dtype
        place(
            heads_TXD, rope, deals.cells_T, self._keys[layer], self._values[layer],
            num_heads=heads.num_heads, keep=dense and self._batch.limits.spans > 0,
            scales=self._scales(layer), most=MOST.get(self._dtype, 0.0), factors_2K=self._factors_of(layer),
        )  # fmt: skip
        out_THD = torch.empty(
            (len(heads_TXD), heads.num_heads, heads.head_dim), dtype=heads_TXD.dtype, device=heads_TXD.device
        )
        if deals.runs is not None:
            self._attend_runs(layer, heads_TXD, scale, deals.runs)
        if deals.rows is not None:
            self._attend_rows(layer, heads_TXD, out_THD, scale, sinks_H, deals.rows)
        if self._by_cudnn:
            assert self._cudnn is not None
            self._by_cudnn = self._cudnn.run(heads_TXD, self._keys[layer], self._values[layer], out_THD, scale)
            if not self._by_cudnn:
                self._spans = deals.spans()
        if self._spans is not None:
            self._attend_spans(layer, heads_TXD, out_THD, scale, sinks_H, self._spans, dense=dense)
        return out_THD

    def _attend_runs(self, layer: int, heads_TXD: Tensor, scale: float, dealt: Dealt) -> None:
        heads, shape, table_SP = self._kind, self.deals.shapes.runs, self.deals.table_SP
        num_programs = min(len(dealt.items_JW) * heads.num_kv_heads, self.deals.num_processors * shape.programs)
        paged.attend_runs[(num_programs,)](
            heads_TXD, heads_TXD.stride(0), self._keys[layer], self._values[layer],
            *(self._scales(layer) or (None, None)), self._factors_of(layer),
            dealt.parts_JKMD, dealt.lse_JKM,
            dealt.items_JW, dealt.tokens_M, dealt.used_1, table_SP, table_SP.stride(0), scale * _LOG2E,
            self._slopes_H, self._batch.positions_T,
            K=heads.num_kv_heads, G=self._repeat, D=heads.head_dim, PAGE=self._group.page_size, CAP=self._cap,
            TILE=dealt.tile, M=shape.rows, N=shape.block, D_PAD=self._head_pad, PDL=self._pdl,
            PAIRS=self._pairs(heads_TXD), CVT=self._compiled,
            num_warps=shape.warps, num_stages=shape.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _attend_rows(
        self, layer: int, heads_TXD: Tensor, out_THD: Tensor, scale: float, sinks_H: Tensor | None, dealt: Dealt
    ) -> None:
        heads, shape, table_SP = self._kind, self.deals.rows_shape, self.deals.table_SP
        runs, shared = self.deals.runs, self.deals.shared
        run_parts, run_lse, places_M2, members_QL, members = None, None, None, None, 1
        if runs is not None and shared is not None:
            run_parts, run_lse, places_M2 = runs.parts_JKMD, runs.lse_JKM, runs.places_M2
            members_QL, members = shared.members_QL, shared.tile
        paged.attend_rows[(heads.num_kv_heads, len(dealt.items_JW))](
            heads_TXD, heads_TXD.stride(0), self._keys[layer], self._values[layer],
            *(self._scales(layer) or (None, None)), self._factors_of(layer), out_THD,
            dealt.parts_JKMD, dealt.lse_JKM, dealt.arrived_JK, run_parts, run_lse, members_QL, places_M2,
            dealt.items_JW, table_SP, table_SP.stride(0), scale * _LOG2E, self._slopes_H, sinks_H,
            K=heads.num_kv_heads, G=self._repeat, D=heads.head_dim, PAGE=self._group.page_size,
            WINDOW=window_told(heads), CAP=self._cap, MEMBERS=members, LEVELS=0 if runs is None else RUN_LEVELS,
            TILE=dealt.tile, M=shape.rows, N=shape.block, **self.deals.joining(dealt.tile * self._repeat),
            ALONE=max(1, JOINED // (2 * shape.rows * self._head_pad)), D_PAD=self._head_pad, PDL=self._pdl,
            PAIRS=self._pairs(heads_TXD), CVT=self._compiled,
            num_warps=shape.warps, num_stages=shape.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _attend_spans(
        self,
        layer: int,
        heads_TXD: Tensor,
        out_THD: Tensor,
        scale: float,
        sinks_H: Tensor | None,
        dealt: Dealt,
        *,
        dense: bool,
    ) -> None:
        heads, shape, table_SP = self._kind, self.deals.shapes.spans, self.deals.table_SP
        tma, kv_TX = dense and self.deals.shapes.tma and self.deals.tma and self._head_pad == heads.head_dim, None
        if tma:
            kv_TX = TensorDescriptor.from_tensor(heads_TXD.flatten(1), [shape.block, heads.head_dim])
        paged.attend_spans[(heads.num_kv_heads, len(dealt.items_JW))](
            heads_TXD, heads_TXD.stride(0), kv_TX, self._keys[layer], self._values[layer],
            *(self._scales(layer) or (None, None)), self._factors_of(layer), out_THD,
            dealt.parts_JKMD, dealt.lse_JKM, dealt.arrived_JK, dealt.items_JW, table_SP, table_SP.stride(0),
            scale * _LOG2E, self._slopes_H, sinks_H,
            K=heads.num_kv_heads, G=self._repeat, D=heads.head_dim, PAGE=self._group.page_size,
            WINDOW=window_told(heads), CAP=self._cap, DENSE=dense, TMA=tma, TILE=dealt.tile, M=shape.rows, N=shape.block,
            **self.deals.joining(dealt.tile * self._repeat), D_PAD=self._head_pad, PDL=self._pdl,
            num_warps=shape.warps, num_stages=shape.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _scales(self, layer: int) -> tuple[Tensor, Tensor] | None:
        if self._key_scales is None or self._value_scales is None:
            return None
        return self._key_scales[layer], self._value_scales[layer]

    def _factors_of(self, layer: int) -> Tensor | None:
        return None if self._factors is None else self._factors.of_layers_L2K[layer]

    def _pairs(self, heads_TXD: Tensor) -> bool:
        return self._dtype.itemsize == 1 and heads_TXD.dtype.itemsize == 2
