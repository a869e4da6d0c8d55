"""Attention one row at a time in float32: slow, on any device, and plainly right. The others are tested against it.

Suffix legend: T tokens of the step, N tokens of one row, L positions that the row's tokens may see, H query heads,
K KV heads, D head size, C cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sapwood.attention.base import Batch, bend, heads_of, rotated, slopes_of, weights_of
from sapwood.attention.rows import RowsOf
from sapwood.attention.scaled import Factors, divided, rounded
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup
from sapwood.device import abilities_of
from sapwood.kernels import NormRope


class Reference:
    """A loop over rows with an explicit mask and softmax. Keys and values lie as [layer, cell, KV head, D]; their scales, where
    there are any, without D."""

    name = "reference"
    waits = True  # `plan` reads what the device has made, so that no graph holds it

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype.itemsize == 1 and Ability.HOST in abilities_of(device):
            return f"without scales it stores keys and values in the dtypes that are computed in, not {dtype}"
        return None

    def __init__(
        self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype, *, scaled: bool = False
    ) -> None:
        self._group, self._device, self._dtype = group, device, dtype
        self._scaled = scaled
        self._kind = heads_of(group)
        self._slopes_H11 = slopes_of(self._kind, device, -1, 1, 1)
        self.factors = Factors(group, device) if dtype == torch.float8_e4m3fn and not scaled else None
        self._rows = RowsOf(group, index, device)
        self.relative_HP: Tensor | None = None  # what scores have more, by distance, the farthest first

    def allocate(self, num_pages: int) -> None:
        group, heads = self._group, self._kind
        shape = (group.num_layers, num_pages * group.page_size, heads.num_kv_heads, heads.head_dim)
        self._keys = torch.zeros(shape, dtype=self._dtype, device=self._device)
        self._values = torch.zeros_like(self._keys)
        self._scales = torch.zeros(2, *shape[:-1], device=self._device) if self._scaled else None

    def plan(self, batch: Batch) -> None:
        self._rows.plan(batch)

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float, sinks_H: Tensor | None = None) -> Tensor:
        q_THD, k_TKD, v_TKD = rotated(heads_TXD, rope, self._kind)
        self._write(layer, 0, k_TKD)
        self._write(layer, 1, v_TKD)
        repeat = self._kind.num_heads // self._kind.num_kv_heads
        out_THD = torch.zeros_like(q_THD)
        for row in self._rows.rows:
            k_LHD = self._read(layer, 0, row.cells_L).repeat_interleave(repeat, dim=1)
            v_LHD = self._read(layer, 1, row.cells_L).repeat_interleave(repeat, dim=1)
            scores_HNL = torch.einsum("nhd,lhd->hnl", q_THD[row.first : row.last].float(), k_LHD) * scale
            bend(scores_HNL, self._kind.cap, self._slopes_H11, row.distance_NL, self.relative_HP)
            scores_HNL.masked_fill_(~row.seen_NL, float("-inf"))
            weights_HNL = weights_of(scores_HNL, None if sinks_H is None else sinks_H[:, None, None])
            out_THD[row.first : row.last] = torch.einsum("hnl,lhd->nhd", weights_HNL, v_LHD).to(q_THD.dtype)
        return out_THD

    def _write(self, layer: int, which: int, x_TKD: Tensor) -> None:
        """To the tokens' cells: keys (0) or values (1)."""
        if self._scales is not None:
            x_TKD, self._scales[which, layer][self._rows.cells_T] = rounded(x_TKD, self._dtype)
        elif self.factors is not None:
            x_TKD = divided(x_TKD, self.factors.of_layers_L2K[layer, which], self._dtype)
        (self._keys, self._values)[which][layer][self._rows.cells_T] = x_TKD.to(self._dtype)

    def _read(self, layer: int, which: int, cells_L: Tensor) -> Tensor:
        """float32."""
        x_LKD = (self._keys, self._values)[which][layer][cells_L].float()
        if self.factors is not None:
            return x_LKD * self.factors.of_layers_L2K[layer, which][:, None]
        return x_LKD if self._scales is None else x_LKD * self._scales[which, layer][cells_L][..., None]

    def pools(self) -> Sequence[Tensor]:
        size = self._group.page_size
        all_cells = (self._keys, self._values, *(() if self._scales is None else self._scales))
        return [cells.view(len(cells), -1, size, *cells.shape[2:]) for cells in all_cells]
