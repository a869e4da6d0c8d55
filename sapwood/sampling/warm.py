"""What decides for rows that no graph decides for, launched once: kernels are compiled by it."""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.sampling.fast import draw
from sapwood.sampling.masks import restrict, restricted


def warm(vocab_size: int, dtype: torch.dtype, settings_SK: Tensor) -> None:
    """For logits as a model computes them, in `dtype`, and as sampling edits them. `settings_SK` are of all slots."""
    device = settings_SK.device
    for kind in (dtype, torch.float32):
        logits_NV = torch.zeros(1, vocab_size, dtype=kind, device=device)
        places_M = torch.zeros(1, dtype=torch.int64, device=device)
        bits_MW = torch.zeros(1, -(-vocab_size // 32), dtype=torch.int32, device=device)
        restrict(restricted(logits_NV, places_M, bits_MW), places_M, bits_MW)
        slots_N, positions_N, out_N = torch.zeros(3, 1, dtype=torch.int32, device=device).unbind(0)
        draw(logits_NV, settings_SK, slots_N, positions_N, out_N)
