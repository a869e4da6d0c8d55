"""When words were said, from how much a transcript's tokens look at each moment of a window (dynamic time warping).

Suffix legend: N tokens, L moments of 20 ms.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_NO_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that are written without them."""
_OPENING = "\"'“¿([{-"
_CLOSING = "\"'.。,，!！?？:：”)]}、"
_BROKEN = "�"


class Decodes(Protocol):
    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str: ...


@dataclass(eq=False)
class Word:
    """`word` with the space before it, `start` and `end` in seconds, the mean `probability` of its tokens."""

    word: str
    start: float
    end: float
    probability: float


def moments(matrix_NL: NDArray[np.float32]) -> NDArray[np.int64]:
    """first_N, the moment at which each token begins: where the cheapest way through -matrix from corner to corner, which goes on by a
    token, a moment or both, gets to it.

    The table is filled along its diagonals, whose cells depend on the two before alone.
    """
    num_tokens, num_moments = matrix_NL.shape
    cost = np.full((num_tokens + 1, num_moments + 1), np.inf, np.float32)
    step = np.full((num_tokens + 1, num_moments + 1), 2, np.int8)  # 0 both, 1 a token, 2 a moment
    cost[0, 0] = 0
    step[1:, 0] = 1
    for diagonal in range(2, num_tokens + num_moments + 1):
        i = np.arange(max(1, diagonal - num_moments), min(num_tokens, diagonal - 1) + 1)
        j = diagonal - i
        both, token, moment = cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1]
        best = np.where((token < both) & (token < moment), 1, 2)
        best = np.where((both < token) & (both < moment), 0, best)
        step[i, j] = best
        cost[i, j] = np.choose(best, (both, token, moment)) - matrix_NL[i - 1, j - 1]
    return _first(step)


def _first(step: NDArray[np.int8]) -> NDArray[np.int64]:
    i, j = step.shape[0] - 1, step.shape[1] - 1
    found = np.zeros(i, np.int64)
    while i > 0 and j > 0:
        found[i - 1] = j - 1
        kind = step[i, j]
        i -= kind != 2
        j -= kind != 1
    return found


def split(tokens: Sequence[int], text: Decodes, language: str) -> list[tuple[str, int]]:
    """Words of a segment's text, and how many tokens each has. Signs are words of their own."""
    pieces = _whole(tokens, text)
    if language in _NO_SPACES:
        return pieces
    words: list[tuple[str, int]] = []
    for piece, count in pieces:
        if not words or piece.startswith(" ") or piece.strip() in string.punctuation:
            words.append((piece, count))
        else:
            words[-1] = words[-1][0] + piece, words[-1][1] + count
    return words


def _whole(tokens: Sequence[int], text: Decodes) -> list[tuple[str, int]]:
    """Texts of as few tokens as make whole characters."""
    pieces, first = [], 0
    for end in range(1, len(tokens) + 1):
        piece = text.decode(tokens[first:end])
        if _BROKEN not in piece or end == len(tokens):
            pieces.append((piece, end - first))
            first = end
    return pieces


def joined(words: Sequence[Word]) -> list[Word]:
    """With signs at the word that they belong to: opening ones at the next, closing ones at the one before."""
    found: list[Word] = []
    for word in words:
        if found and not found[-1].word.endswith(" ") and word.word in _CLOSING:
            found[-1].word += word.word
        else:
            found.append(word)
    kept: list[Word] = []
    for word in reversed(found):
        if kept and word.word.startswith(" ") and word.word.strip() in _OPENING:
            kept[-1].word = word.word + kept[-1].word
        else:
            kept.append(word)
    return kept[::-1]
