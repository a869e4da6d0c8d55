"""Vectors of texts: the states of their tokens after the last norm, joined over the chunks that a text is computed in.

Every way of pooling is a sum of states with a weight for each position, divided by the sum of the weights.

Suffix legend: T tokens of the step, N those with a weight, P rows that pool, E rows that end, D hidden size, X what is yielded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sapwood.base.plan import Floats, Ints, Longs, Plan
from sapwood.base.ragged import firsts
from sapwood.base.task import Embed, Pooling, Score
from sapwood.runner.assemble import Rank
from sapwood.runner.table import Table
from sapwood.runner.transfer import download, upload


@dataclass(frozen=True, eq=False)
class Pooled:
    """What rows of a plan yield, on its way to the host."""

    rows: Sequence[int]
    vectors_EX: Tensor

    def read(self) -> dict[int, Floats]:
        """By row, once it is there."""
        return dict(zip(self.rows, self.vectors_EX.numpy(), strict=True))


@dataclass(frozen=True, eq=False)
class _Part:
    """A row's span of a text: the weights of its tokens, and the sum of those of all."""

    row: int
    slot: int
    task: Embed | Score
    weights_N: Floats
    total: float
    first: int
    """Its first token with a weight, in the step."""
    goes_on: bool
    """It began in an earlier step."""
    ends: bool


class Pooler:
    """Keeps the sums of texts that have not ended, by slot: what a slot's last text has left is forgotten with its next."""

    def __init__(self, rank: Rank, table: Table) -> None:
        self._rank, self._table = rank, table
        self._sums: dict[int, Tensor] = {}

    def pool(self, plan: Plan, hidden_TD: Tensor | None) -> Sequence[Pooled]:
        """Take in what a step has computed of texts, and start the way of those that end to the host."""
        wanted: list[int] = self._table.pooled_S[plan.slots_R].nonzero()[0].tolist()
        rows = [row for row in wanted if isinstance(self._table.admit(int(plan.slots_R[row])).task, Embed | Score)]
        if not rows:
            return ()
        assert hidden_TD is not None, "what is pooled is never part of a graph"
        first_R = firsts(plan.counts_R)
        parts = [self._part(plan, row, int(first_R[row])) for row in rows]
        sums_PD = _summed(hidden_TD, parts, self._table.device)
        for part, sum_D in zip(parts, sums_PD, strict=True):
            if not part.task.whole:
                continue
            if part.goes_on:
                sum_D.add_(self._sums.pop(part.slot))
            if not part.ends:
                self._sums[part.slot] = sum_D
        return [pooled for kind in (Embed, Score) if (pooled := self._ended(kind, parts, sums_PD)) is not None]

    def _part(self, plan: Plan, row: int, first: int) -> _Part:
        slot, start, count = (int(column[row]) for column in (plan.slots_R, plan.starts_R, plan.counts_R))
        admit = self._table.admit(slot)
        assert isinstance(admit.task, Embed | Score), "no other task is pooled"
        low, weights_N, total = _weights(admit.task.pooling, start, count, admit.prompt_len)
        return _Part(row, slot, admit.task, weights_N, total, first + low, start > 0, bool(plan.heads_R[row]))

    def _ended(self, kind: type[Embed] | type[Score], parts: Sequence[_Part], sums_PD: Tensor) -> Pooled | None:
        places = [place for place, part in enumerate(parts) if part.ends and isinstance(part.task, kind)]
        if not places:
            return None
        totals_E = np.array([parts[place].total for place in places], np.float32)
        places_E, totals_E1 = upload([np.array(places), totals_E[:, None]], self._table.device)
        vectors_ED = sums_PD.index_select(0, places_E) / totals_E1
        made_EX = vectors_ED if kind is Embed else self._rank.model.classify(vectors_ED)
        return Pooled([parts[place].row for place in places], download(made_EX))


def _weights(pooling: Pooling, start: int, count: int, length: int) -> tuple[int, Floats, float]:
    """Of positions from `start` on, of a text of that `length`: how many have none at first, the weights of those behind them, and
    the sum of all of the text's."""
    match pooling:
        case "cls":
            return 0, np.ones(1 if start == 0 else 0, np.float32), 1.0
        case "last":
            ends = start + count == length
            return count - 1 if ends else 0, np.ones(1 if ends else 0, np.float32), 1.0
        case "mean":
            return 0, np.ones(count, np.float32), float(length)
        case "weighted":
            return 0, np.arange(start + 1, start + count + 1, dtype=np.float32), length * (length + 1) / 2


def _summed(hidden_TD: Tensor, parts: Sequence[_Part], device: torch.device) -> Tensor:
    """Weighted sums of each part, float32, added up in the order of the text."""
    counts: Longs = np.array([len(part.weights_N) for part in parts])
    tokens_N: Ints = np.concatenate([part.first + np.arange(len(part.weights_N), dtype=np.int64) for part in parts])
    if not len(tokens_N):
        return torch.zeros(len(parts), hidden_TD.shape[1], device=device)
    weights_N1 = np.concatenate([part.weights_N for part in parts])[:, None]
    counts_P, tokens, weights = upload([counts, tokens_N, weights_N1], device)
    states_ND = hidden_TD.index_select(0, tokens).float() * weights
    return torch.segment_reduce(states_ND, "sum", lengths=counts_P, axis=0, unsafe=True)
