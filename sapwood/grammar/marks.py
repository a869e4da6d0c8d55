"""Where marks of time may stand in a transcript."""

from __future__ import annotations

import llguidance
import numpy as np

from sapwood.base.plan import Bits
from sapwood.base.sampling import Timestamps


class Marks:
    """What may follow by the rules of Whisper's timestamps (`ApplyTimestampRules` of openai-whisper, all but the one that looks at
    probabilities, which is a step of sampling).

    A transcript begins with a mark. Behind one that ends a text comes the mark of the next text's beginning, or the end; behind
    that one, text. No mark is earlier than the one before, and a text takes some time. See `Follows`.
    """

    __slots__ = ("_begin", "_output", "_rules", "_size", "error", "strikes")

    done = False
    spoiled = False

    def __init__(self, rules: Timestamps, *, vocab_size: int, position: int) -> None:
        self._rules, self._size = rules, vocab_size
        self._begin = position
        self._output: list[int] = []
        self.error, self.strikes = "", 0

    @property
    def position(self) -> int:
        return self._begin + len(self._output)

    @property
    def width(self) -> int:
        """int32 words of a mask."""
        return -(-self._size // 32)

    def accept(self, token: int) -> bool:
        """Take the next token, whatever it is: what must not come was masked."""
        self._output.append(token)
        return True

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens."""
        del self._output[len(self._output) - count :]

    def forced(self) -> list[int]:
        """Nothing: there is always a choice."""
        return []

    def begin(self, bits_W: Bits) -> llguidance.LLMatcher | None:
        """Write which tokens may come next."""
        may_V = np.zeros(32 * len(bits_W), np.bool_)
        for tokens in self._open():
            may_V[tokens] = True
        bits_W[:] = np.packbits(may_V, bitorder="little").view(np.int32)
        return None

    def finish(self, bits_W: Bits) -> None:
        """Nothing comes too soon here."""

    def _open(self) -> tuple[slice, ...]:
        """The tokens that may come next."""
        first, text_end, output = self._rules.first, self._rules.text_end, self._output
        if not output:
            return (slice(first, min(first + self._rules.most_begin, self._size)),)
        if output[-1] < first:  # within a text
            earlier = next((token for token in reversed(output) if token >= first), first - 1)
            return slice(first), slice(earlier + 1, self._size)
        if len(output) < 2 or output[-2] >= first:  # a text begins
            return (slice(first),)
        return slice(text_end, first), slice(output[-1], self._size)
