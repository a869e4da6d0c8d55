"""Attention over latents on CUDA devices with the kernels of `sapwood.kernels.triton.latent`.

Suffix legend: T tokens of the step, S slots, P pages of a slot, H query heads, R rank of the latents, W what a position keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from sapwood.attention.base import Batch
from sapwood.attention.deals import JOINED, Deals, Dealt, Shape, Shapes, Tiles
from sapwood.attention.expanded import Expansion
from sapwood.attention.latent import Turn, latent_of
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup, Latent, page_size_problem
from sapwood.base.plan import RUN_LEVELS
from sapwood.device import abilities_of
from sapwood.kernels.triton import latent

_LOG2E = math.log2(math.e)
_STORED = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)


def shapes(kind: Latent, itemsize: int) -> Shapes:
    """For latents of that size in the dtype that is computed in.

    The sum of a row's latents stays in registers: 64 rows of 512 are all that two groups of four warps have room for.
    """
    rows = max(16, triton.next_power_of_2(kind.tile_heads))
    if itemsize == 4:
        few, many = Shape(rows, 16, 4, 1, 1), Shape(64, 16, 8, 1, 1)
        return Shapes(few, few, many, many, tma=False)
    few = Shape(rows, 64, 8, 2, 1, 128) if rows < 64 else Shape(rows, 32, 8, 3, 1, 256)
    many = Shape(64, 32, 8, 2, 1, 256)
    return Shapes(few, many, Shape(64, 64, 8, 2, 1, 256), many, tma=False)


class TritonLatent:
    """Latents lie as [layer, page, cell of the page, W]."""

    name = "triton-latent"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype not in _STORED:
            return f"it stores latents as float16, bfloat16, float32 or float8_e4m3fn, not {dtype}"
        if dtype == torch.float8_e4m3fn and Ability.FP8 not in abilities_of(device):
            return f"{device} does not convert float8_e4m3fn"
        if latent_of(group).rank > 512:
            return f"its tiles hold latents of at most 512, and the model's have {latent_of(group).rank}"
        problem = page_size_problem(group.page_size)
        return problem and f"the page size {problem}"

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        self._group, self._device, self._dtype = group, device, dtype
        self._kind = kind = latent_of(group)
        heads = kind.tile_heads
        self._programs, self._heads = kind.num_heads // heads, heads
        self._pads = tuple(max(16, triton.next_power_of_2(size)) for size in (kind.rank, kind.rope))
        self.deals = Deals(
            group, index, device, shapes(kind, max(2, dtype.itemsize)), Tiles(self._programs, heads, kind.rank)
        )

    def allocate(self, num_pages: int) -> None:
        shape = (self._group.num_layers, num_pages, self._group.page_size, self._kind.width)
        self._latents = torch.zeros(shape, dtype=self._dtype, device=self._device)

    def pools(self) -> Sequence[Tensor]:
        return [self._latents]

    def plan(self, batch: Batch) -> None:
        self.deals.plan(batch)
        self._expansion = Expansion.of(batch, self.deals.table_SP, self._group.page_size)
        self._spans = None if self._expansion is not None else self.deals.spans()

    def expand(
        self, layer: int, q_THK: Tensor, queries_THW: Tensor, up_HXR: Tensor, values_HTV: Tensor, scale: float
    ) -> None:
        if self._expansion is not None:
            asked_THP, kept_CW = queries_THW[..., self._kind.rank :], self._latents[layer].flatten(0, 1)
            self._expansion.attend(q_THK, asked_THP, kept_CW, up_HXR, values_HTV, scale)

    def run(self, layer: int, queries_THW: Tensor, latents_TW: Tensor, turn: Turn, scale: float) -> Tensor:
        kind, deals = self._kind, self.deals
        latent.place(
            queries_THW, latents_TW, turn.norm, turn.cos_TF, turn.sin_TF, deals.cells_T, self._latents[layer],
            rank=kind.rank, interleaved=turn.interleaved,
        )  # fmt: skip
        shape = (len(queries_THW), kind.num_heads, kind.rank)
        out_THR = torch.empty(shape, dtype=queries_THW.dtype, device=queries_THW.device)
        if deals.runs is not None:
            self._attend_runs(layer, queries_THW, scale, deals.runs)
        if deals.rows is not None:
            self._attend(layer, queries_THW, out_THR, scale, deals.rows, deals.rows_shape, deals.runs)
        if self._spans is not None:
            self._attend(layer, queries_THW, out_THR, scale, self._spans, deals.shapes.spans, None)
        return out_THR

    def _attend_runs(self, layer: int, queries_THW: Tensor, scale: float, dealt: Dealt) -> None:
        deals, shape = self.deals, self.deals.shapes.runs
        num_programs = min(len(dealt.items_JW) * self._programs, deals.num_processors * shape.programs)
        latent.attend_runs[(num_programs,)](
            queries_THW, self._latents[layer], dealt.parts_JKMD, dealt.lse_JKM, dealt.items_JW, dealt.tokens_M,
            dealt.used_1, deals.table_SP, deals.table_SP.stride(0), scale * _LOG2E,
            TILE=dealt.tile, **self._sizes(shape), launch_pdl=deals.pdl,
        )  # fmt: skip

    def _attend(
        self,
        layer: int,
        queries_THW: Tensor,
        out_THR: Tensor,
        scale: float,
        dealt: Dealt,
        shape: Shape,
        runs: Dealt | None,
    ) -> None:
        deals, shared = self.deals, self.deals.shared
        run_parts, run_lse, places_M2, members_QL, members = None, None, None, None, 1
        if runs is not None and shared is not None:
            run_parts, run_lse, places_M2 = runs.parts_JKMD, runs.lse_JKM, runs.places_M2
            members_QL, members = shared.members_QL, shared.tile
        latent.attend[(self._programs, len(dealt.items_JW))](
            queries_THW, self._latents[layer], out_THR, dealt.parts_JKMD, dealt.lse_JKM, dealt.arrived_JK, run_parts,
            run_lse, members_QL, places_M2, dealt.items_JW, deals.table_SP, deals.table_SP.stride(0), scale * _LOG2E,
            MEMBERS=members, LEVELS=0 if runs is None else RUN_LEVELS, TILE=dealt.tile,
            **self._joining(dealt.tile * self._heads), ALONE=max(1, JOINED // (2 * shape.rows * self._pads[0])),
            **self._sizes(shape), launch_pdl=deals.pdl,
        )  # fmt: skip

    def _joining(self, rows: int) -> dict[str, int]:
        read = self.deals.joining(rows)
        return {"S": read["S"], "B": read["R"]}

    def _sizes(self, shape: Shape) -> dict[str, int | bool]:
        kind, (rank_pad, rope_pad) = self._kind, self._pads
        return {
            "K": self._programs, "G": self._heads, "R": kind.rank, "P": kind.rope, "PAGE": self._group.page_size,
            "M": shape.rows, "N": shape.block, "R_PAD": rank_pad, "P_PAD": rope_pad, "PDL": self.deals.pdl,
            "num_warps": shape.warps, "num_stages": shape.stages,
        }  # fmt: skip
