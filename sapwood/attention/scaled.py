"""Keys and values with a scale for each position and head, or with factors of heads that stay.

Suffix legend: T tokens, K KV heads, D head size, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from sapwood.base.kv import Heads, KVGroup

MOST: Mapping[torch.dtype, float] = MappingProxyType({torch.int8: 127.0, torch.float8_e4m3fn: 448.0})
"""What the largest of a head becomes."""


def rounded(x_TKD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the dtype, and the scales: float32 [T, K]."""
    x_TKD = x_TKD.float()
    scale_TK = x_TKD.abs().amax(dim=-1) / MOST[dtype]
    x_TKD = torch.where(scale_TK[..., None] > 0, x_TKD / scale_TK[..., None], 0.0)
    return (torch.floor(x_TKD + 0.5) if dtype == torch.int8 else x_TKD).to(dtype), scale_TK


class Factors:
    """What keys (0) and values (1) are divided by before they are stored, and multiplied by again where they are read: for each layer and
    head one, 1 unless a checkpoint brings others. `of_layers_L2K` is float32 and stays where it is, for graphs that have noted where."""

    def __init__(self, group: KVGroup, device: torch.device) -> None:
        assert isinstance(group.kind, Heads)
        self.of_layers_L2K = torch.ones(group.num_layers, 2, group.kind.num_kv_heads, device=device)

    def put(self, layer: int, which: int, factors: Tensor) -> None:
        """Of a layer's heads one each, or one for all."""
        self.of_layers_L2K[layer, which].copy_(factors)


def divided(x_TKD: Tensor, factors_K: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the dtype. What is too large becomes the largest."""
    return (x_TKD.float() / factors_K[:, None]).clamp(-MOST[dtype], MOST[dtype]).to(dtype)
