"""Predicted outputs: the caller says what the answer will be like, and a cursor follows it there.

prediction   a b c d e f g h i j
output       a b c X Y f g            behind Y the cursor is lost; f g are found again ahead
                         ↑
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.draft.chains import Chains, Match
from sapwood.draft.drafter import Drafter

_LEAST = 2  # tokens in common where a cursor that was lost goes on
_CANDIDATES = 64


class Cursor:
    """Where an output is in what was predicted of it.

    It begins at the beginning. Where the output differs it is lost, until the output's last tokens, two at least, stand
    in the prediction: where most of them do, ahead of the place where it was lost if it can be, and as near as can be.
    """

    def __init__(self, prediction: Ints) -> None:
        self._prediction = prediction
        self._at = 0
        self._lost = False
        self._seen = 0  # tokens of the output that it has followed
        self._chains: Chains | None = None

    def ahead(self, output: Ints, count: int) -> Ints:
        """What is predicted to follow the output, which has only grown."""
        self._follow(output[self._seen :])
        self._seen = len(output)
        if self._lost:
            self._find(output)
        return self._prediction[:0] if self._lost else self._prediction[self._at : self._at + count]

    def _follow(self, news: Ints) -> None:
        if self._lost or not len(news):
            return
        said = self._prediction[self._at : self._at + len(news)]
        differs = said != news[: len(said)]
        right = int(differs.argmax()) if differs.any() else len(said)
        self._at += right
        self._lost = right < len(news)

    def _find(self, output: Ints) -> None:
        if self._chains is None:
            self._chains = Chains(_LEAST)
            self._chains.extend(self._prediction, len(self._prediction))
        matches = self._chains.matches(self._prediction, output, _CANDIDATES)
        best = max(matches, key=self._worth, default=None)
        if best is not None:
            self._at, self._lost = best.place, False

    def _worth(self, match: Match) -> tuple[int, bool, int]:
        ahead = match.place - self._at
        return match.length, ahead > 0, -abs(ahead)


class Predictions(Drafter):
    """Proposes what requests that bring a prediction predict."""

    name = "prediction"

    def __init__(self) -> None:
        self._cursors: dict[int, Cursor] = {}

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int] | Ints:
        if not request.params.prediction:
            return ()
        cursor = self._cursors.get(request.id)
        if cursor is None:
            cursor = self._cursors[request.id] = Cursor(np.array(request.params.prediction, np.int32))
        return cursor.ahead(tokens[request.prompt_len :], count)

    def leave(self, request: Request) -> None:
        self._cursors.pop(request.id, None)
