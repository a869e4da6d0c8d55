"""Which tokens an output may be made of, and which runs of tokens must not stand in it."""

from __future__ import annotations

from collections.abc import Sequence

import llguidance
import numpy as np

from sapwood.base.plan import Bits
from sapwood.base.sampling import SamplingParams
from sapwood.grammar.constraint import ALL, Follows, allows, forbid, spare

_STUCK = "its allowed_token_ids and bad_words leave no token that may follow{}"


class Words:
    """Takes tokens out of what may follow: those that are never allowed, and the last one of each forbidden run when all
    before it has just been said.

    All else is as `inner` has it, the constraint of the request's grammar, or free. See `Follows`. `min_len` and
    `stop_ids` are as for a `Constraint`, which sees to them where there is one.
    """

    __slots__ = ("_begin", "_error", "_inner", "_may_W", "_min_len", "_output", "_runs", "_stop_ids", "strikes")

    def __init__(
        self,
        params: SamplingParams,
        inner: Follows | None = None,
        *,
        vocab_size: int,
        position: int,
        min_len: int = 0,
        stop_ids: Sequence[int] = (),
    ) -> None:
        self._inner = inner
        self._begin = position
        self._may_W = first_words(params, vocab_size)
        self._runs: dict[int, list[tuple[list[int], int]]] = {}  # by the last token before the one that must not follow
        for *before, last in params.forbidden:
            if before:
                self._runs.setdefault(before[-1], []).append((before, last))
        self._output: list[int] = []
        self._min_len, self._stop_ids = min_len, stop_ids
        self._error, self.strikes = "", 0

    @property
    def position(self) -> int:
        return self._begin + len(self._output)

    @property
    def width(self) -> int:
        return len(self._may_W)

    @property
    def done(self) -> bool:
        return self._inner is not None and self._inner.done

    @property
    def spoiled(self) -> bool:
        return not self._error and self._inner is not None and self._inner.spoiled

    @property
    def error(self) -> str:
        return self._error or (self._inner.error if self._inner is not None else "")

    @error.setter
    def error(self, error: str) -> None:
        if self._inner is None:
            self._error = error
        else:
            self._inner.error = error

    def accept(self, token: int) -> bool:
        """Take the next token; False if nothing may follow any more, or the grammar does not allow it."""
        if self._error or (self._inner is not None and not self._inner.accept(token)):
            return False
        self._output.append(token)
        return True

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens, and what went wrong behind those that are left."""
        del self._output[len(self._output) - count :]
        self._error = ""
        if self._inner is not None:
            self._inner.rollback(count)

    def forced(self) -> list[int]:
        """What the grammar forces, as far as it may be said."""
        if self._error or self._inner is None:
            return []
        start = len(self._output)
        for token in self._inner.forced():
            if not allows(self._may_W, token) or token in self._shut():
                break
            self._output.append(token)
        tokens = self._output[start:]
        del self._output[start:]
        return tokens

    def begin(self, bits_W: Bits) -> llguidance.LLMatcher | None:
        """Start to write which tokens may come next; the matcher that has to fill the row, if one has to."""
        if self._inner is not None and not self._error:
            return self._inner.begin(bits_W)
        bits_W.fill(ALL)
        return None

    def finish(self, bits_W: Bits) -> None:
        """Take out of a filled row what must not come. Where nothing is left, the output has to end with an error."""
        if self.error:
            return
        bits_W &= self._may_W
        forbid(bits_W, self._shut())
        stuck = not bits_W.any()
        if self._inner is not None:
            self._inner.finish(bits_W)
        elif self.position < self._min_len:
            spare(bits_W, self._stop_ids)
        if stuck and not self.error:
            self._error = _STUCK.format("" if self._inner is None else " in its grammar")
            bits_W.fill(ALL)

    def _shut(self) -> list[int]:
        """The tokens that would complete a run now."""
        runs = self._runs.get(self._output[-1], ()) if self._output else ()
        return [last for before, last in runs if self._output[-len(before) :] == before]


def first_words(params: SamplingParams, vocab_size: int) -> Bits:
    """A mask of the tokens that an output may begin with, if it may be any text: [W], bit v % 32 of word v // 32 is token v's."""
    tokens = params.allowed_token_ids
    flags = np.zeros(-(-vocab_size // 32) * 32, np.bool_)
    flags[slice(vocab_size) if tokens is None else list(tokens)] = True
    flags[[run[0] for run in params.forbidden if len(run) == 1]] = False
    return np.packbits(flags, bitorder="little").view(np.int32)
