"""Logits of the tokens that a grammar allows; the others become impossible.

Bit v % 32 of word v // 32 of a mask's row is token v's. A mask may be wider than the vocabulary.

Suffix legend: N rows, M masked ones, V vocabulary, W int32 words of a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.device import abilities_of


def restrict(logits_NV: Tensor, places_M: Tensor, bits_MW: Tensor) -> None:
    """Make impossible, in place, what the masks of the rows at `places_M` (int64) do not allow."""
    if Ability.TRITON in abilities_of(logits_NV.device):
        from sapwood.kernels.triton.mask import launch

        launch(logits_NV, places_M, bits_MW, logits_NV, gather=False)
    else:
        logits_NV.index_copy_(0, places_M, restricted(logits_NV, places_M, bits_MW))


def restricted(logits_NV: Tensor, places_M: Tensor, bits_MW: Tensor) -> Tensor:
    """The same for a copy of those rows: [M, V]."""
    if Ability.TRITON in abilities_of(logits_NV.device):
        from sapwood.kernels.triton.mask import launch

        out_MV = logits_NV.new_empty(len(places_M), logits_NV.shape[1])
        launch(logits_NV, places_M, bits_MW, out_MV, gather=True)
        return out_MV
    return logits_NV.index_select(0, places_M).add_(_addends(bits_MW, logits_NV))


def _addends(bits_MW: Tensor, logits_NV: Tensor) -> Tensor:
    """[M, V]: 0 where a token is allowed, else -inf; eight at a time from a table, faster than any choice by condition."""
    values = torch.arange(256)
    flags_VB = ((values[:, None] >> torch.arange(8)) & 1).bool()
    table_VB = torch.zeros(256, 8, dtype=logits_NV.dtype).masked_fill_(~flags_VB, -torch.inf)
    return table_VB[bits_MW.view(torch.uint8).long()].flatten(1)[:, : logits_NV.shape[1]]
