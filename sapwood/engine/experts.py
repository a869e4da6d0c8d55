"""What experts on ranks of their own have had to do, and what replicas of some of them would make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sapwood.base.plan import Longs
from sapwood.base.stake import Stake
from sapwood.engine.loop import Gauges
from sapwood.parallel.balance import balance, place


class ExpertLoad:
    """Takes part in an engine whose ranks have the experts from `firsts` on, and has nothing to say where there are none. `tokens` says how many tokens have chosen each expert of each layer
    ([layers, experts]) since the start."""

    def __init__(self, tokens: Callable[[], Longs], firsts: Sequence[int]) -> None:
        self._tokens, self._firsts = tokens, firsts

    @property
    def stakes(self) -> tuple[Stake, ...]:
        return ()

    @property
    def gauges(self) -> tuple[Gauges, ...]:
        return (self._gauge,) if self._firsts else ()

    @property
    def commands(self) -> Mapping[str, Callable[..., dict[str, Any]]]:
        return {"experts": self._told} if self._firsts else {}

    def _gauge(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        """`expert_tokens` by the ranks times `expert_tokens_of_busiest` is the balance of any while."""
        tokens_LX = self._tokens()
        if not tokens_LX.size:
            return {}, {}
        busiest = sum(int(self._loads(tokens_X).max()) for tokens_X in tokens_LX)
        return {"expert_tokens": int(tokens_LX.sum()), "expert_tokens_of_busiest": busiest}, {}

    def _loads(self, tokens_X: Longs) -> Longs:
        """Of each rank."""
        found: Longs = np.add.reduceat(tokens_X, list(self._firsts))
        return found

    def _told(self) -> dict[str, Any]:
        tokens_LX, ranks = self._tokens(), len(self._firsts)
        places = -(-tokens_LX.shape[1] // ranks) * ranks
        return {
            "ranks": ranks,
            "tokens": tokens_LX.tolist(),
            "balance": [round(balance(self._loads(tokens_X)), 4) for tokens_X in tokens_LX],
            "balance_with_replicas": [
                round(place(tokens_X, num_places=places + ranks, num_ranks=ranks).balance(tokens_X), 4)
                for tokens_X in tokens_LX
            ],
        }
