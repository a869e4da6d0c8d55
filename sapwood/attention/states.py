"""States of recurrences: where they lie, and what mixers compute with them. The reference, on any device.

A page of such a group keeps the state as it was behind a few positions, in `cells`: that of position p in cell
p % cells. A row begins with the state behind the position before it, and leaves those behind each of its heads, to one of which
it may have to go back, or else that behind its last token.

Suffix legend: T tokens of the step, R rows, N tokens of one row, C channels, W width of a convolution, H heads, G groups of
heads with the same keys and queries, K size of a key, V size of a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sapwood.attention.base import Backend, Batch
from sapwood.base.kv import KVGroup, State
from sapwood.kernels import recurrent


class StateBackend(Backend, Protocol):
    """A backend of groups that keep `State`. `layer` is the number within the group, `index` that of the state's shape."""

    def conv(self, layer: int, index: int, x_TC: Tensor, weight_CW: Tensor, bias_C: Tensor | None) -> Tensor:
        """A causal convolution of each channel by itself; weights are float32. Returns y_TC in x's dtype. Kept are the last
        W - 1 inputs, [C, W - 1]."""
        ...

    def scan(
        self,
        layer: int,
        index: int,
        q_TGK: Tensor,
        k_TGK: Tensor,
        v_THV: Tensor,
        decay_TH: Tensor,
        beta_TH: Tensor | None = None,
    ) -> Tensor:
        """S = exp(decay) S, S += k u, y = q S: see `sapwood.kernels.recurrent.scan`. `decay`, [T, H] or [T, H, K], and `beta` are
        float32, H is a multiple of G. Returns y_THV in v's dtype. Kept is S, [H, K, V]."""
        ...


class _Row(NamedTuple):
    """A row's tokens [first, last) of the step, the cell it begins with, -1 for none, and those it leaves at its end."""

    first: int
    last: int
    source: int
    targets: list[int]


def state_of(group: KVGroup) -> State:
    """The group's kind, for backends that serve no other."""
    assert isinstance(group.kind, State), "chosen by kind"
    return group.kind


class States:
    """Row by row, those of one token all at once. States lie as [layer, cell, *shape]."""

    name = "reference-states"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        self._group, self._index, self._device = group, index, device
        self._shapes = state_of(group).shapes

    def allocate(self, num_pages: int) -> None:
        cells = num_pages * self._group.cells
        shapes = [(self._group.num_layers, cells, *shape) for shape in self._shapes]
        self._kept = [torch.zeros(shape, dtype=torch.float32, device=self._device) for shape in shapes]

    def pools(self) -> Sequence[Tensor]:
        layers, size = self._group.num_layers, self._group.cells
        return [kept.view(layers, -1, size * prod(shape)) for kept, shape in zip(self._kept, self._shapes, strict=True)]

    def plan(self, batch: Batch) -> None:
        offsets, starts, counts = (column.tolist() for column in (batch.offsets_R1, batch.starts_R, batch.counts_R))
        heads = [1] * len(starts) if batch.heads_R is None else batch.heads_R.clamp(min=1).tolist()
        table_SP = batch.tables_GSP[self._index]
        rows = []
        for slot, start, count, first, kept in zip(
            batch.slots_R.tolist(), starts, counts, offsets, heads, strict=False
        ):
            if count:
                end = start + count
                source, *targets = self._cells(table_SP[slot], [start - 1, *range(end - min(kept, count), end)])
                rows.append(_Row(first, first + count, source if start else -1, targets))
        self._rows = [row for row in rows if row.last - row.first > 1]
        single = [row for row in rows if row.last - row.first == 1]
        columns = ([row.first for row in single], [row.source for row in single], [row.targets[0] for row in single])
        self._tokens_N, self._sources_N, self._targets_N = (
            torch.tensor(column, dtype=torch.int64, device=self._device) for column in columns
        )

    def _cells(self, table_P: Tensor, positions: list[int]) -> list[int]:
        group = self._group
        pages = table_P[[max(0, position) // group.page_size for position in positions]].tolist()
        return [page * group.cells + position % group.cells for page, position in zip(pages, positions, strict=True)]

    # -- recurrences ----------------------------------------------------------------------------------------------

    def conv(self, layer: int, index: int, x_TC: Tensor, weight_CW: Tensor, bias_C: Tensor | None) -> Tensor:
        kept, y_TC = self._kept[index][layer], torch.zeros_like(x_TC)
        for row in self._rows:
            x_NC = x_TC[row.first : row.last].float()
            y_NC, all_CN = recurrent.conv(x_NC, self._begin(kept, row), weight_CW, bias_C)
            y_TC[row.first : row.last] = y_NC.to(y_TC.dtype)
            for back, target in enumerate(reversed(row.targets)):
                end = all_CN.shape[1] - back
                kept[target] = all_CN[:, end - kept.shape[-1] : end]
        if len(self._tokens_N):
            all_NCW = torch.cat([self._begin_all(kept), x_TC[self._tokens_N].float()[..., None]], dim=2)
            y_NC = (all_NCW * weight_CW).sum(2)
            y_TC[self._tokens_N] = (y_NC if bias_C is None else y_NC + bias_C).to(y_TC.dtype)
            kept[self._targets_N] = all_NCW[:, :, 1:]
        return y_TC

    def scan(
        self,
        layer: int,
        index: int,
        q_TGK: Tensor,
        k_TGK: Tensor,
        v_THV: Tensor,
        decay_TH: Tensor,
        beta_TH: Tensor | None = None,
    ) -> Tensor:
        kept, y_THV = self._kept[index][layer], torch.zeros_like(v_THV)
        repeat = v_THV.shape[1] // q_TGK.shape[1]

        def of(where: slice | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
            q_NHK, k_NHK = (x_TGK[where].float().repeat_interleave(repeat, dim=1) for x_TGK in (q_TGK, k_TGK))
            return q_NHK, k_NHK, v_THV[where].float(), decay_TH[where], None if beta_TH is None else beta_TH[where]

        for row in self._rows:
            state_HKV, done = self._begin(kept, row), row.first
            # What is kept of several tokens is behind each of them: all but the first take a scan of their own.
            for end, target in enumerate(row.targets, start=row.last - len(row.targets) + 1):
                y_NHV, state_HKV = recurrent.scan(*of(slice(done, end)), state_HKV)
                y_THV[done:end] = y_NHV.to(y_THV.dtype)
                kept[target], done = state_HKV, end
        if len(self._tokens_N):
            y_NHV, states_NHKV = recurrent.advance(*of(self._tokens_N), self._begin_all(kept))
            y_THV[self._tokens_N], kept[self._targets_N] = y_NHV.to(y_THV.dtype), states_NHKV
        return y_THV

    @staticmethod
    def _begin(kept: Tensor, row: _Row) -> Tensor:
        return torch.zeros_like(kept[0]) if row.source < 0 else kept[row.source]

    def _begin_all(self, kept: Tensor) -> Tensor:
        """The states that rows of one token begin with."""
        states = kept[self._sources_N]
        states[self._sources_N < 0] = 0.0
        return states
