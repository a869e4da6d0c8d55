"""Where an output is in what was predicted of it, for who drafts from a prediction and for who counts what came true.

prediction   a b c d e f g h i j
output       a b c X Y f g            behind Y the cursor is lost; f g are found again ahead
                         ↑
"""

from __future__ import annotations

import numpy as np

from sapwood.base.chains import Chains, Match
from sapwood.base.plan import Ints

_LEAST = 2  # tokens in common where a cursor that was lost goes on
_CANDIDATES = 64


class Cursor:
    """Follows an output in its prediction.

    It begins at the beginning. Where the output differs it is lost, until the output's last tokens, two at least, stand
    in the prediction: where most of them do, ahead of the place where it was lost if it can be, and as near as can be.
    `at` tokens of the prediction are behind it.
    """

    def __init__(self, prediction: Ints) -> None:
        self._prediction = prediction
        self.at = 0
        self._lost = False
        self._seen = 0  # tokens of the output that it has followed
        self._chains: Chains | None = None

    def ahead(self, output: Ints, count: int) -> Ints:
        """What is predicted to follow the output, which has only grown: up to `count` tokens, none while it is lost."""
        self._follow(output[self._seen :])
        self._seen = len(output)
        if self._lost:
            self._find(output)
        return self._prediction[:0] if self._lost else self._prediction[self.at : self.at + count]

    def _follow(self, news: Ints) -> None:
        if self._lost or not len(news):
            return
        right = _in_common(self._prediction[self.at :], news)
        self.at += right
        self._lost = right < len(news)

    def _find(self, output: Ints) -> None:
        if self._chains is None:
            self._chains = Chains(_LEAST)
            self._chains.extend(self._prediction, len(self._prediction))
        matches = self._chains.matches(self._prediction, output, _CANDIDATES)
        best = max(matches, key=self._worth, default=None)
        if best is not None:
            self.at, self._lost = best.place, False

    def _worth(self, match: Match) -> tuple[int, bool, int]:
        ahead = match.place - self.at
        return match.length, ahead > 0, -abs(ahead)


def came_true(prediction: Ints, output: Ints) -> int:
    """How many tokens of the prediction a cursor knew before they were there, each counted once."""
    cursor, seen = Cursor(prediction), 0
    true = np.zeros(len(prediction), np.bool_)
    while seen < len(output):
        ahead = cursor.ahead(output[:seen], len(output) - seen)
        known = _in_common(ahead, output[seen:])
        true[cursor.at : cursor.at + known] = True
        seen += known + 1  # the token that it did not know, or the end
    return int(true.sum())


def _in_common(one: Ints, other: Ints) -> int:
    """How many tokens two texts begin with alike."""
    most = min(len(one), len(other))
    differs = np.flatnonzero(one[:most] != other[:most])
    return int(differs[0]) if len(differs) else most
