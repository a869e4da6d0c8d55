"""When the latents of a step's spans are expanded again, and how: some heads at a time, so that no more than a bounded part of keys
and values ever lies there, however long a context is.

Suffix legend: T tokens of the step, N spans, L positions of all contexts, H query heads, K size of a head's own key, P turned numbers,
V size of a value, X = K + V, R rank of the latents, W = R + P, S slots, P pages of a slot.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sapwood.attention.base import Batch
from sapwood.kernels.triton import expanded

_LOG2E = math.log2(math.e)

LEAST = 1024
"""Tokens that spans have on average, from which on this is worth it. At DeepSeek's sizes it is less arithmetic from 171 on, but spans
see half of their own tokens, and there is more to launch."""
MOST_CONTEXT = 1 << 16
"""Positions of all contexts: their latents are gathered at once."""
MOST_BYTES = 64 << 20
"""Of keys and values that lie there at a time: all 16 heads of a whole step's tokens, at DeepSeek-V2-Lite's size."""


class Expansion:
    """The spans of one step that are computed so. Only outside of graphs, where the host knows of them."""

    @staticmethod
    def of(batch: Batch, table_SP: Tensor, page_size: int) -> Expansion | None:
        """None where it is not worth it, or the host does not know."""
        spans = batch.spans
        if spans is None or batch.heads_R is not None or not spans.several or spans.tokens < LEAST * spans.several:
            return None
        return None if spans.context > MOST_CONTEXT else Expansion(batch, table_SP, page_size)

    def __init__(self, batch: Batch, table_SP: Tensor, page_size: int) -> None:
        spans = batch.spans
        assert spans is not None, "asked before"
        rows = slice(spans.first, spans.first + spans.number)
        many_N = batch.counts_R[rows] > 1  # rows of one token are attended to with those that decode
        counts_N = batch.counts_R[rows] * many_N
        ends_N = (batch.starts_R[rows] + batch.counts_R[rows]) * many_N
        bases_N1 = torch.zeros(spans.number + 1, dtype=torch.int64, device=ends_N.device)
        torch.cumsum(ends_N, 0, out=bases_N1[1:])
        place_L = torch.arange(spans.context, device=ends_N.device)
        span_L = torch.searchsorted(bases_N1[1:], place_L, right=True).clamp_(max=spans.number - 1)
        position_L = place_L - bases_N1[span_L]
        page_L = table_SP[batch.slots_R[rows][span_L].long(), position_L // page_size]
        self._cells_L = page_L.long() * page_size + position_L % page_size
        firsts_N = batch.offsets_R1[spans.first : spans.first + spans.number]
        self._spans = expanded.Spans(firsts_N, counts_N, ends_N, bases_N1[:-1], spans.longest)

    def attend(
        self, q_THK: Tensor, asked_THP: Tensor, kept_CW: Tensor, up_HXR: Tensor, values_HTV: Tensor, scale: float
    ) -> None:
        """Write the values of the spans' tokens. `kept_CW` are one layer's latents by cell."""
        # PyTorch gathers no float8, but bytes.
        stored = kept_CW.view(torch.uint8) if kept_CW.itemsize == 1 else kept_CW
        latents_LW = stored.index_select(0, self._cells_L).view(kept_CW.dtype).to(q_THK.dtype)
        num_heads, width, rank = up_HXR.shape
        latents_LR, turned_LP = latents_LW[:, :rank], latents_LW[:, rank:]
        each = len(latents_LW) * width * latents_LW.itemsize
        group = max(1, min(num_heads, MOST_BYTES // each))
        cut = expanded.Cut(128, 64, 8, 3) if latents_LW.itemsize == 2 else expanded.Cut(64, 16, 4, 1)
        for first in range(0, num_heads, group):
            heads = slice(first, first + group)
            up_XR = up_HXR[heads].flatten(0, 1)
            expanded_LHX = torch.mm(latents_LR, up_XR.T).unflatten(1, (-1, width))
            expanded.attend(
                q_THK[:, heads],
                asked_THP[:, heads],
                expanded_LHX,
                turned_LP,
                values_HTV[heads],
                self._spans,
                scale * _LOG2E,
                cut,
            )
