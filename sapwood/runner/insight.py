"""What requests want to know of the positions that a step computes for them, on its way to the host.

Suffix legend: T tokens of the step, N those that somebody wants to know of, D hidden size, V vocabulary, L layers with experts, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sapwood.base.insight import Insight, dtype_of
from sapwood.base.plan import Plan
from sapwood.base.ragged import firsts
from sapwood.runner.assemble import Rank
from sapwood.runner.step import Pass
from sapwood.runner.table import Table
from sapwood.runner.transfer import download, upload

_ELEMENTS = 1 << 25  # most logits that exist on the device at once


@dataclass(frozen=True, eq=False)
class Seen:
    """Of one kind: pieces of what was found, one behind the other, and of whom: rows with the number of their positions, and the dtype
    that each wants."""

    name: Insight
    pieces: Sequence[Tensor]
    rows: Sequence[tuple[int, int, np.dtype[Any]]]

    def read(self) -> dict[int, NDArray[Any]]:
        """By row, once it is there."""
        whole, first, found = np.concatenate([piece.numpy() for piece in self.pieces]), 0, {}
        for row, count, dtype in self.rows:
            found[row] = whole[first : first + count].astype(dtype)
            first += count
        return found


class Teller:
    """Looks for what is asked."""

    def __init__(self, rank: Rank, table: Table, *, vocab_size: int) -> None:
        self._rank, self._table = rank, table
        self._at_once = max(1, _ELEMENTS // vocab_size)
        self._kinds: Mapping[Insight, Callable[[Pass, Tensor], Sequence[Tensor]]] = {
            "hidden_states": self._hidden,
            "logits": self._logits,
            "routed_experts": self._experts,
        }

    def look(self, plan: Plan, left: Pass) -> Sequence[Seen]:
        """Start the way of all of it to the host."""
        rows = self._table.curious_S[plan.slots_R].nonzero()[0].tolist()
        if not rows:
            return ()
        first_R, found = firsts(plan.counts_R), []
        for name, look in self._kinds.items():
            asking = [(row, self._table.admit(plan.slots_R[row]).params) for row in rows]
            mine = [(row, params.return_dtype) for row, params in asking if name in params.insights]
            if not mine:
                continue
            places = [np.arange(first_R[row], first_R[row] + plan.counts_R[row], dtype=np.int64) for row, _ in mine]
            (tokens_N,) = upload([np.concatenate(places)], self._table.device)
            counts = [(row, int(plan.counts_R[row]), dtype_of(name, precision)) for row, precision in mine]
            found.append(Seen(name, [download(piece) for piece in look(left, tokens_N)], counts))
        return found

    def _hidden(self, left: Pass, tokens_N: Tensor) -> Sequence[Tensor]:
        assert left.hidden_TD is not None, "who wants to know more is never part of a graph"
        return [left.hidden_TD.index_select(0, tokens_N).float()]

    def _logits(self, left: Pass, tokens_N: Tensor) -> Sequence[Tensor]:
        """A bounded part at a time."""
        assert left.hidden_TD is not None
        return [
            self._rank.logits(left.hidden_TD.index_select(0, some_N), some_N)
            for some_N in tokens_N.split(self._at_once)
        ]

    def _experts(self, left: Pass, tokens_N: Tensor) -> Sequence[Tensor]:
        assert left.routed_TLK is not None, "asked for"
        return [left.routed_TLK.index_select(0, tokens_N).flatten(1)]


def by_row(seen: Sequence[Seen]) -> dict[int, dict[Insight, NDArray[Any]]]:
    """What each row is told."""
    found: dict[int, dict[Insight, NDArray[Any]]] = {}
    for one in seen:
        for row, array in one.read().items():
            found.setdefault(row, {})[one.name] = array
    return found
