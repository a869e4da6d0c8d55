"""How the tokens of a text look at the input that it is of: weights of cross-attention, which attention itself never keeps.

Suffix legend: H heads, N tokens, L positions of the input, W width of the filter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.attention.fixed import Entries, Watch
from sapwood.base.plan import Plan
from sapwood.base.ragged import firsts
from sapwood.base.task import Align
from sapwood.runner.pool import Pooled
from sapwood.runner.table import Table
from sapwood.runner.transfer import download

_WIDTH = 7
"""Positions of which the median is taken, as in openai-whisper and transformers."""


class Aligner:
    """Keeps the weights of texts that have not ended, by slot."""

    def __init__(self, pool: Entries | None, table: Table) -> None:
        self._pool, self._table = pool, table
        self._watches: list[tuple[int, Align, Watch]] = []  # rows of the step
        self._weights: dict[int, list[Tensor]] = {}

    def watch(self, plan: Plan) -> None:
        """Have attention keep the weights of a step's tokens, where a row wants them."""
        if self._pool is None:
            return
        self._watches = []
        rows = np.flatnonzero(self._table.pooled_S[plan.slots_R])
        first_R = firsts(plan.counts_R) if len(rows) else plan.counts_R
        for row in rows.tolist():
            slot = int(plan.slots_R[row])
            task = self._table.admit(slot).task
            assert isinstance(task, Align), "a model with a pool does no other"
            first = int(first_R[row])
            heads = {layer: [head for one, head in task.heads if one == layer] for layer, _ in task.heads}
            entry = int(self._pool.entries_S[slot])
            tokens = slice(first, first + int(plan.counts_R[row]))
            self._watches.append((row, task, Watch(tokens, entry, heads, task.frames)))
        self._pool.watched = [watch for _, _, watch in self._watches]

    def take(self, plan: Plan) -> Sequence[Pooled]:
        """Take in the weights of a step, and start the way of texts that end to the host."""
        ended = []
        for row, task, watch in self._watches:
            slot = int(plan.slots_R[row])
            if plan.starts_R[row] == 0:
                self._weights[slot] = []
            self._weights[slot].append(torch.cat(watch.found))
            if plan.heads_R[row]:
                weights_HNL = torch.cat(self._weights.pop(slot), dim=1)[:, task.skip :]
                ended.append(Pooled([row], download(smoothed(weights_HNL).reshape(1, -1))))
        return ended


def smoothed(weights_HNL: Tensor) -> Tensor:
    """matrix_NL: normed over tokens, the median of positions side by side, the mean of heads (openai-whisper's `find_alignment`)."""
    deviation_H1L = weights_HNL.std(-2, keepdim=True, unbiased=False)
    normed_HNL = (weights_HNL - weights_HNL.mean(-2, keepdim=True)) / deviation_H1L
    normed_HNL = torch.where(deviation_H1L > 0, normed_HNL, 0.0)  # all tokens look there alike
    around = _WIDTH // 2
    if weights_HNL.shape[-1] > around:
        padded = F.pad(normed_HNL, (around, around), mode="reflect")
        normed_HNL = padded.unfold(-1, _WIDTH, 1).median(-1).values
    return normed_HNL.mean(0)
