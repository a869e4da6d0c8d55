"""Attention over one sequence, which notes what its last token looks at: for a model that estimates which tokens of a prompt matter.

Keys and values lie in the order of the positions, without pages. Plain products in float32, blocks of queries at a time.

Suffix legend: T tokens of the step, N tokens of a block, L positions, H query heads, K KV heads, G = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sapwood.attention.base import Batch, bend, heads_of, rotated, slopes_of, weights_of
from sapwood.base.kv import KVGroup
from sapwood.kernels import NormRope

_MOST = 1 << 23  # scores at a time


class Watching:
    """While `watches`, `seen_L` is the largest weight that any head of any layer of the group gives to each position, from the step's last
    token."""

    name = "watching"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        return "its scores have no learned numbers for distances" if heads_of(group).relative else None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        self._group, self._kind, self._device, self._dtype = group, heads_of(group), device, dtype
        self._slopes_H11 = slopes_of(self._kind, device, -1, 1, 1)
        self.watches, self.seen_L = False, torch.zeros(0, device=device)

    def allocate(self, num_pages: int) -> None:
        shape = self._group.num_layers, num_pages * self._group.page_size, self._kind.num_kv_heads, self._kind.head_dim
        self._keys = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._values = torch.empty_like(self._keys)

    def plan(self, batch: Batch) -> None:
        self._end = int(batch.positions_T[-1]) + 1
        self.seen_L = torch.zeros(self._end, device=self._device)

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float, sinks_H: Tensor | None = None) -> Tensor:
        q_THD, k_TKD, v_TKD = rotated(heads_TXD, rope, self._kind)
        start = self._end - len(q_THD)
        self._keys[layer, start : self._end] = k_TKD
        self._values[layer, start : self._end] = v_TKD
        out_THD = torch.empty_like(q_THD)
        size = max(1, _MOST // (self._kind.num_heads * self._end))
        for first in range(0, len(q_THD), size):
            q_NHD = q_THD[first : first + size]
            out_THD[first : first + size] = self._attended(layer, q_NHD, start + first, scale, sinks_H)
        return out_THD

    def _attended(self, layer: int, q_NHD: Tensor, start: int, scale: float, sinks_H: Tensor | None) -> Tensor:
        end, heads = start + len(q_NHD), self._kind
        k_KDL = self._keys[layer, :end].float().permute(1, 2, 0)
        v_KLD = self._values[layer, :end].float().transpose(0, 1)
        q_KXD = q_NHD.float().unflatten(1, (heads.num_kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        scores_HNL = (q_KXD @ k_KDL).mul_(scale).view(heads.num_heads, len(q_NHD), end)
        places_L = torch.arange(end, device=self._device)
        distance_NL = places_L[start:, None] - places_L
        bend(scores_HNL, heads.cap, self._slopes_H11, distance_NL)
        seen_NL = distance_NL >= 0
        if heads.window is not None:
            oldest = [heads.oldest(position) for position in range(start, end)]
            seen_NL &= places_L >= torch.tensor(oldest, device=self._device)[:, None]
        scores_HNL.masked_fill_(~seen_NL, float("-inf"))
        weights_HNL = weights_of(scores_HNL, None if sinks_H is None else sinks_H[:, None, None])
        if self.watches and end == self._end:
            torch.maximum(self.seen_L, weights_HNL[:, -1].amax(0), out=self.seen_L)
        out_KXD = weights_HNL.view(heads.num_kv_heads, -1, end) @ v_KLD
        out_HND = out_KXD.view(heads.num_heads, len(q_NHD), -1)
        return out_HND.transpose(0, 1).to(q_NHD.dtype)

    def pools(self) -> Sequence[Tensor]:
        raise AssertionError("it has no pages")
