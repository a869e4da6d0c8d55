"""Small worlds in which attention can be checked: sequences with known keys and values, in shuffled and shared pages.

Suffix legend: S slots, P pages of a slot, R rows, L positions of a sequence, H query heads, K KV heads, D head size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.attention.base import Backend, Batch, RowLimits, Shared, Spans, tile_members
from sapwood.attention.reference import Reference
from sapwood.base.kv import KVGroup
from sapwood.base.plan import RUN_LEVELS
from sapwood.kernels import NormRope
from tests.interpreter import interpreter

__all__ = ["interpreter"]


@dataclass(frozen=True)
class Run:
    """Positions [low, high) that some slots share."""

    low: int
    high: int
    slots: tuple[int, ...]


@dataclass
class World:
    """Sequences in slots, each with random queries, keys and values of which a growing part is in the KV cache.

    Slots that share a prefix hold the same pages and the same keys and values there. Pages are dealt in random order,
    page 0 never; pages that slid out of a window are forgotten in the table, as the scheduler does. Cells that no
    sequence has written hold NaN: an output that is finite has not read them.
    """

    group: KVGroup
    lengths: tuple[int, ...]
    shared: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0
    scale: float = 0.2
    shuffled: bool = True

    def __post_init__(self) -> None:
        group, random = self.group, torch.Generator().manual_seed(self.seed)
        assert self.shared % group.page_size == 0
        self.queries, self.keys, self.values = self._content(random)
        pages_per_slot = [-(-length // group.page_size) for length in self.lengths]
        self.num_pages = 1 + sum(pages_per_slot)
        order = (
            torch.randperm(self.num_pages - 1, generator=random) + 1
            if self.shuffled
            else torch.arange(1, self.num_pages)
        )
        deck = iter(order.tolist())
        self.table_SP = torch.zeros(len(self.lengths) + 1, max(pages_per_slot) + 1, dtype=torch.int32)  # and nobody's
        for slot, num_pages in enumerate(pages_per_slot):
            for index in range(num_pages):
                common = index < self.shared // group.page_size and slot > 0
                self.table_SP[slot, index] = self.table_SP[0, index] if common else next(deck)
        for tensors in (self.keys, self.values):
            for tensor in tensors[1:]:
                tensor[:, : self.shared] = tensors[0][:, : self.shared]
        self.fed = [0] + [self.shared] * (len(self.lengths) - 1)
        self.outputs = [
            queries.new_full((*queries.shape[1:3], values.shape[-1]), math.nan)
            for queries, values in zip(self.queries, self.values, strict=True)
        ]

    def share(self, run: Run) -> None:
        """Give the run's slots the pages, keys and values that its first one has there."""
        page_size, (first, *others) = self.group.page_size, run.slots
        pages = slice(run.low // page_size, run.high // page_size)
        for slot in others:
            self.table_SP[slot, pages] = self.table_SP[first, pages]
            for tensors in (self.keys, self.values):
                tensors[slot][:, run.low : run.high] = tensors[first][:, run.low : run.high]

    def _content(self, random: torch.Generator) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Queries, keys and values of each sequence."""
        kind = self.group.kind
        heads = (kind.num_heads, kind.num_kv_heads, kind.num_kv_heads)
        queries, keys, values = (
            [self._draw(random, length, number, kind.head_dim) for length in self.lengths] for number in heads
        )
        return queries, keys, values

    def _draw(self, random: torch.Generator, length: int, num_heads: int, size: int) -> Tensor:
        """[layer, L, heads, D], rounded to the dtype under test and kept in float32."""
        shape = (self.group.num_layers, length, num_heads, size)
        return torch.randn(shape, generator=random).to(self.dtype).float()

    def start(self, backend: Callable[..., Backend], stored: torch.dtype | None = None) -> Backend:
        """One whose cells are in the dtype under test, or in another."""
        made = backend(self.group, 1, self.device, stored or self.dtype)
        made.allocate(self.num_pages)
        for pool in made.pools():
            if pool.itemsize == 1:  # of float8 that is NaN, of integers a number whose scale is NaN
                pool.view(torch.uint8).fill_(0x7F)
            else:
                pool.fill_(math.nan)
        return made

    def batch(
        self,
        spans: Iterable[tuple[int, int]],
        *,
        padding: int = 0,
        no_rows: int = 0,
        runs: Iterable[Run] = (),
        known: bool = False,
        drafted: int = 0,
    ) -> Batch:
        """Rows of (slot, count), each where the slot's last one ended, then `padding` tokens of no row on page 0 and
        `no_rows` rows of no token. `runs` are said to be shared; there is room for more. With `known` the batch tells
        of its spans, as it does outside graphs. The tokens of the first `drafted` rows are all heads."""
        rows = [(slot, self.fed[slot], count) for slot, count in spans]
        shared = None
        if runs:
            members = rows[:drafted] if drafted else [row for row in rows if row[2] == 1]
            shared = self._shared(
                [row[0] for row in members], [row[2] for row in members], len(rows) + no_rows, list(runs)
            )
        rows += [(len(self.lengths), 0, 0)] * no_rows
        slots, starts, counts = (np.array(column, dtype=np.int32) for column in zip(*rows, strict=True))
        if self.group.window is not None:
            for slot, start, _ in rows:  # pages that no later query sees
                self.table_SP[slot, : self.group.first_page(start)] = 0
        positions = torch.cat([torch.arange(start, start + count) for _, start, count in rows if count])
        tokens_slot = torch.from_numpy(np.repeat(slots, counts)).long()
        page_size = self.group.page_size
        cells = self.table_SP[tokens_slot, positions // page_size].long() * page_size + positions % page_size
        cells = torch.cat([cells, torch.zeros(padding, dtype=torch.long)])
        positions = torch.cat([positions, torch.zeros(padding, dtype=torch.long)])
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        place: Callable[[Tensor], Tensor] = lambda tensor: tensor.to(self.device)  # noqa: E731
        table = place(self.table_SP.clone())
        return Batch(
            ids_T=place(torch.zeros_like(positions)),
            positions_T=place(positions),
            slots_R=place(torch.from_numpy(slots)),
            starts_R=place(torch.from_numpy(starts)),
            counts_R=place(torch.from_numpy(counts)),
            offsets_R1=place(offsets),
            tables_GSP=(torch.zeros_like(table), table),
            cells_GT=(place(torch.zeros_like(cells)), place(cells)),
            limits=self._limits(counts, drafted),
            shared=shared,
            spans=self._spans(starts, counts) if known else None,
            heads_R=place(torch.from_numpy(np.where(np.arange(len(counts)) < drafted, counts, 0))) if drafted else None,
        )

    def _limits(self, counts: np.ndarray, drafted: int) -> RowLimits:
        spans = int((counts[drafted:] > 1).sum())
        return RowLimits(decodes=int((counts > 0).sum()) - spans, spans=spans)

    def _spans(self, starts: np.ndarray, counts: np.ndarray) -> Spans:
        """Rows from the first of several tokens on."""
        first = int(np.argmax(counts > 1))
        later = counts[first:]
        ends = (starts + counts)[first:][later > 1]
        return Spans(first, len(later), int(later.sum()), int(later.max()), len(ends), int(ends.sum()))

    def _shared(self, slots: list[int], counts: list[int], no_rows: int, runs: list[Run]) -> Shared:
        most = tile_members([self.group])
        tiles: list[tuple[int, int, int, int]] = []
        tokens: list[int] = []
        firsts = np.cumsum([0, *counts]).tolist()
        privates = [0] * (firsts[-1] + no_rows)
        members: list[list[int]] = [[] for _ in privates]
        for run in runs:
            queries = [token for slot in run.slots for token in range(*firsts[slots.index(slot) :][:2])]
            for place in range(0, len(queries), most):
                tile = queries[place : place + most]
                tiles.append((run.low, run.high, len(tokens), len(tile), run.slots[0]))
                for token in tile:
                    members[token].append(len(tokens))
                    tokens.append(token)
                    privates[token] = max(privates[token], run.high)
        tiles += [(0, 0, 0, 0, 0)] * 3
        tokens += [0] * 5
        columns = [torch.tensor(column, dtype=torch.int32) for column in (*zip(*tiles, strict=True), tokens, privates)]
        members_QL = torch.tensor([numbers + [-1] * (RUN_LEVELS - len(numbers)) for numbers in members])
        return Shared(*(column.to(self.device) for column in (*columns, members_QL.int())), tile=most)

    def step(
        self,
        backend: Backend,
        spans: list[tuple[int, int]],
        *,
        padding: int = 0,
        no_rows: int = 0,
        runs: Iterable[Run] = (),
        known: bool = False,
        drafted: int = 0,
    ) -> None:
        """Feed the spans through every layer; the last layer's outputs are kept."""
        backend.plan(self.batch(spans, padding=padding, no_rows=no_rows, runs=runs, known=known, drafted=drafted))
        for layer in range(self.group.num_layers):
            flat = [self._flat(tensors, layer, spans, padding) for tensors in (self.queries, self.keys, self.values)]
            out_THD = self._run(backend, layer, flat).float().cpu()
            if layer == self.group.num_layers - 1:
                place = 0
                for slot, count in spans:
                    self.outputs[slot][self.fed[slot] : self.fed[slot] + count] = out_THD[place : place + count]
                    place += count
        for slot, count in spans:
            self.fed[slot] += count

    def _run(self, backend: Backend, layer: int, flat: list[Tensor]) -> Tensor:
        """One layer's attention for a step's queries, keys and values, which no rope turns."""
        half = self.group.kind.head_dim // 2
        ones, zeros = (torch.full((len(flat[0]), half), angle, device=self.device) for angle in (1.0, 0.0))
        sinks_H = self.sinks_H.to(self.device) if self.group.kind.sinks else None
        out_THD = backend.run(layer, torch.cat(flat, dim=1), NormRope(ones, zeros), self.scale, sinks_H)
        assert out_THD.shape == flat[0].shape
        return out_THD

    def feed(self, backend: Backend, spans: list[tuple[int, int]]) -> None:
        """Feed a fresh backend what comes before that which is tested. Interpreted kernels would be long about it: they get
        the pages that the reference makes of it."""
        if backend.name != "triton" or self.device.type == "cuda":
            self.step(backend, spans)
            return
        reference = self.start(Reference)
        self.step(reference, spans)
        for pages_LPKCD, pages_LPCKD in zip(backend.pools(), reference.pools(), strict=True):
            pages_LPKCD.copy_(pages_LPCKD.transpose(2, 3))

    def _flat(self, tensors: list[Tensor], layer: int, spans: list[tuple[int, int]], padding: int) -> Tensor:
        parts = [tensors[slot][layer, self.fed[slot] : self.fed[slot] + count] for slot, count in spans]
        parts.append(torch.full((padding, *parts[0].shape[1:]), math.nan))
        return torch.cat(parts).to(self.device, self.dtype)

    def expected(self, slot: int) -> Tensor:
        """Dense attention of the whole sequence, last layer, float64: no pages, no rows, no blocks."""
        q_LHD, k_LKD, v_LKD = (tensors[slot][-1].double() for tensors in (self.queries, self.keys, self.values))
        num_heads, num_kv_heads = q_LHD.shape[1], k_LKD.shape[1]
        out_LHD = v_LKD.new_empty(len(q_LHD), num_heads, v_LKD.shape[-1])
        positions_L = torch.arange(len(q_LHD))
        firsts_L = torch.tensor([self.group.kind.oldest(position) for position in range(len(q_LHD))])
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            scores_LL = self._bent(q_LHD[:, head] @ k_LKD[:, kv_head].T * self.scale, head)
            seen_LL = torch.ones_like(scores_LL).tril().bool() & (positions_L >= firsts_L[:, None])
            weights_LL = torch.where(seen_LL, scores_LL.exp(), 0.0)
            sink = self._sink(head)
            out_LHD[:, head] = weights_LL @ v_LKD[:, kv_head] / (weights_LL.sum(dim=-1, keepdim=True) + sink)
        return out_LHD.float()

    @property
    def sinks_H(self) -> Tensor:
        """From next to nothing to more than all positions of a short row."""
        return torch.linspace(-2, 4, self.group.kind.num_heads)

    def _sink(self, head: int) -> float:
        return float(self.sinks_H[head].exp()) if self.group.kind.sinks else 0.0

    def _bent(self, scores_LL: Tensor, head: int) -> Tensor:
        if (cap := self.group.kind.cap) is not None:
            scores_LL = (scores_LL / cap).tanh() * cap
        if (slopes := self.group.kind.slopes) is not None:
            places_L = torch.arange(len(scores_LL))
            scores_LL = scores_LL - slopes[head] * (places_L[:, None] - places_L)
        return scores_LL

    def check(self, slots: Iterable[int] | None = None) -> None:
        """Every output so far equals dense attention."""
        chosen = range(len(self.lengths)) if slots is None else slots
        self.check_from({slot: self.shared if slot else 0 for slot in chosen})

    def check_from(self, firsts: dict[int, int], *, tolerance: float | None = None) -> None:
        """The outputs of some slots, each from one of its positions on, equal dense attention."""
        if tolerance is None:
            tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}[self.dtype]
        for slot, first in firsts.items():
            got, expected = self.outputs[slot][first : self.fed[slot]], self.expected(slot)[first : self.fed[slot]]
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture
def world() -> type[World]:
    return World


@pytest.fixture
def run() -> type[Run]:
    return Run
