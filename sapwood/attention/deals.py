"""What the programs of attention's kernels shall do in a step: made once per step, by `sapwood.kernels.triton.deal`.

Rows that yield, spans and runs of shared pages are mixed freely; each kind is one launch, left out when the step has none.
Launch sizes follow from the numbers of tokens, rows and tiles alone, and the work is dealt out on the device, so that a
launch made for the worst case of a bucket serves every step that fits it.

Suffix legend: T tokens of the step, R rows, Q queries of rows that yield, J items, W words of an item, K programs of an item, M
rows of a tile or memberships, D size of a part, S slots, P pages of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sapwood.attention.base import Batch, Shared, window_told
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup
from sapwood.device import abilities_of
from sapwood.kernels.triton import deal, pdl

JOINED = 8192
"""Elements of parts that a program reads at once: their loads are all on the way together."""


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


@dataclass(frozen=True, eq=False)
class Dealt:
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


class Tiles(NamedTuple):
    """How a group's queries are cut: `programs` of an item, each with so many query `heads`. A row of a part has `width` numbers."""

    programs: int
    heads: int
    width: int


class Deals:
    """Deals out the steps of one KV group, the `index`-th of a batch, on a device."""

    def __init__(self, group: KVGroup, index: int, device: torch.device, shapes: Shapes, tiles: Tiles) -> None:
        self._group, self._index, self._device, self._tiles = group, index, device, tiles
        self.shapes = shapes
        self.pdl = pdl.supported(device)
        abilities = abilities_of(device)
        self.compiled, self.tma = Ability.TRITON in abilities, Ability.TMA in abilities
        if self.compiled:
            self.num_processors = torch.cuda.get_device_properties(device).multi_processor_count
        else:  # the interpreter, which stands for a small device, so that tests see parts
            self.num_processors, self.tma = 4, True
            kinds = ("rows", "drafted", "spans", "runs")
            smaller = {kind: replace(getattr(shapes, kind), least=0) for kind in kinds}
            self.shapes = replace(shapes, **smaller, tma=True)

    def plan(self, batch: Batch) -> None:
        """Deal out the rows and runs of a step; `spans` are dealt when they are asked for."""
        self.batch = batch
        self.rows_shape = self.shapes.rows if batch.heads_R is None else self.shapes.drafted
        self.shared = batch.shared if self._group.window is None and batch.limits.decodes else None
        self.rows = self._deal_rows() if batch.limits.decodes else None
        self.runs = None if self.shared is None else self._deal_runs(self.shared)

    @property
    def table_SP(self) -> Tensor:
        return self.batch.tables_GSP[self._index]

    @property
    def cells_T(self) -> Tensor:
        return self.batch.cells_GT[self._index]

    def _deal_rows(self) -> Dealt:
        batch, shape, num_rows = self.batch, self.rows_shape, len(self.batch.counts_R)
        tile, num_tiles = 1, num_rows
        if batch.heads_R is not None:
            tile = shape.rows // self._tiles.heads
            num_tiles += len(batch.ids_T) // tile
        most = max(self._fill(shape), num_rows // 2)  # a row among many is split if it is twice as long as the mean
        dealt = self._room(num_tiles + most, tile)
        self._deal(dealt, shape, most, spans=False)
        return dealt

    def _deal_runs(self, shared: Shared) -> Dealt:
        shape, num_tiles, num_members = self.shapes.runs, len(shared.lows_I), len(shared.tokens_M)
        most = max(self._fill(shape), num_tiles // 2)
        new = torch.empty(1 + 2 * num_members, dtype=torch.int32, device=self._device)
        used_1, places_M2 = new.split((1, 2 * num_members))
        dealt = self._room(num_tiles + most, shared.tile, joined=False)
        dealt = replace(dealt, used_1=used_1, tokens_M=shared.tokens_M, places_M2=places_M2)
        deal.deal_runs[(num_tiles,)](
            shared.lows_I, shared.highs_I, shared.firsts_I, shared.sizes_I, shared.slots_I, dealt.items_JW, places_M2, used_1,
            num_tiles, most, self._least(shape),
            N=shape.block, MEMBERS=shared.tile, PAD=(pad := self._pad(num_tiles)), PDL=self.pdl,
            num_warps=_warps(pad), launch_pdl=self.pdl,
        )  # fmt: skip
        return dealt

    def spans(self) -> Dealt | None:
        """The step's spans, if there can be any."""
        batch, shape = self.batch, self.shapes.spans
        if not batch.limits.spans:
            return None
        tile = shape.rows // self._tiles.heads
        num_tiles = len(batch.ids_T) // tile + batch.limits.spans
        most = max(0, self._fill(shape) - num_tiles)
        dealt = self._room(num_tiles + most, tile, parts=most > 0)
        self._deal(dealt, shape, most, spans=True)
        return dealt

    def _deal(self, dealt: Dealt, shape: Shape, most: int, *, spans: bool) -> None:
        batch, num_rows = self.batch, len(self.batch.counts_R)
        privates_Q = None if spans or self.shared is None else self.shared.privates_Q
        deal.deal_rows[(1,)](
            batch.slots_R, batch.starts_R, batch.counts_R, batch.heads_R, batch.offsets_R1, privates_Q, dealt.items_JW,
            dealt.arrived_JK, num_rows, len(dealt.items_JW), most, self._least(shape),
            WINDOW=window_told(self._group.kind), SHARED=privates_Q is not None, SPANS=spans, QUERIES=dealt.tile,
            N=shape.block, ALIGN=self._align(shape), K=self._tiles.programs, PAD=(pad := self._pad(num_rows)),
            PDL=self.pdl, num_warps=_warps(pad), launch_pdl=self.pdl,
        )  # fmt: skip

    def _fill(self, shape: Shape) -> int:
        """Items that fill the device."""
        return max(1, self.num_processors * shape.programs // self._tiles.programs)

    def _least(self, shape: Shape) -> int:
        """In blocks."""
        return max(1, shape.least // shape.block)

    def _align(self, shape: Shape) -> int:
        """A block starts at a multiple of this, and does not leave a page that is no smaller than it."""
        return min(shape.block, self._group.page_size)

    def _pad(self, count: int) -> int:
        """Three sizes for most steps, since each is compiled."""
        most = len(self.table_SP) - 1  # rows that there can be
        return 64 if count <= 64 else triton.next_power_of_2(max(count, min(most, 256) if count <= 256 else most))

    def _room(self, num_items: int, tile: int, *, parts: bool = True, joined: bool = True) -> Dealt:
        device, (programs, heads, width) = self._device, self._tiles
        items_JW = torch.empty((num_items, deal.ITEM), dtype=torch.int32, device=device)
        if not parts:
            return Dealt(items_JW, tile, None, None, None)
        rows = (num_items, programs, tile * heads)
        parts_JKMD = torch.empty((*rows, width), dtype=torch.float32, device=device)
        lse_JKM = torch.empty(rows, dtype=torch.float32, device=device)
        arrived_JK = torch.empty(rows[:2], dtype=torch.int32, device=device) if joined else None
        return Dealt(items_JW, tile, parts_JKMD, lse_JKM, arrived_JK)

    def joining(self, rows: int) -> dict[str, int]:
        """How a tile of so many rows reads its parts."""
        padded = triton.next_power_of_2(rows)
        return {"S": max(1, JOINED // (padded * triton.next_power_of_2(self._tiles.width))), "R": padded}


def _warps(pad: int) -> int:
    return min(8, pad // 64)
