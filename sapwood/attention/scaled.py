"""Keys and values with a scale for each position and head.

Suffix legend: T tokens, K KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

MOST: Mapping[torch.dtype, float] = MappingProxyType({torch.int8: 127.0, torch.float8_e4m3fn: 448.0})
"""What the largest of a head becomes."""


def rounded(x_TKD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the dtype, and the scales: float32 [T, K]."""
    x_TKD = x_TKD.float()
    scale_TK = x_TKD.abs().amax(dim=-1) / MOST[dtype]
    x_TKD = torch.where(scale_TK[..., None] > 0, x_TKD / scale_TK[..., None], 0.0)
    return (torch.floor(x_TKD + 0.5) if dtype == torch.int8 else x_TKD).to(dtype), scale_TK
