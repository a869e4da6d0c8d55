"""Prompt lookup: what followed the last tokens when they stood in the text before (Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.base.chains import Chains
from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.draft.drafter import Drafter

_CANDIDATES = 8


class Lookup(Drafter):
    """Looks at the last places of prompt and output that end in the same `least` tokens as the text does, and goes on as
    behind the one that has most tokens before it in common. A text that repeats itself is expected to go on so."""

    name = "ngram"

    def __init__(self, least: int) -> None:
        self._least = least
        self._chains: dict[int, Chains] = {}

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int] | Ints:
        chains = self._chains.get(request.id)
        if chains is None:
            chains = self._chains[request.id] = Chains(self._least)
        chains.extend(tokens, len(tokens) - 1)  # the end itself is no place to go on from
        best = max(chains.matches(tokens, tokens, _CANDIDATES), key=lambda match: match.length, default=None)
        if best is None:
            return ()
        return np.resize(tokens[best.place :][:count], count)

    def leave(self, request: Request) -> None:
        self._chains.pop(request.id, None)
