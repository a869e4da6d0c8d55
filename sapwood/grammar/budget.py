"""A bound on how long a model thinks."""

from __future__ import annotations

import llguidance

from sapwood.base.grammar import Thinking
from sapwood.base.plan import Bits
from sapwood.grammar.constraint import ALL, Follows
from sapwood.grammar.trigger import Trigger
from sapwood.grammar.vocabulary import Vocabulary


class BudgetConstraint:
    """Counts the tokens of thoughts, and lets only the end of them follow when there are enough.

    All else is as `inner` has it, the constraint of the request's grammar, or free. See `Follows`.
    """

    __slots__ = (
        "_begin",
        "_end",
        "_error",
        "_inner",
        "_leaving",
        "_left",
        "_open",
        "_pieces",
        "_state",
        "_thinking",
        "_trail",
        "_width",
        "position",
        "strikes",
    )  # fmt: skip

    def __init__(
        self, thinking: Thinking, vocabulary: Vocabulary, inner: Follows | None = None, *, position: int
    ) -> None:
        self.position = position
        self._thinking = thinking
        self._inner = inner
        self._width = vocabulary.width
        self._pieces = vocabulary.pieces
        self._begin, self._end = (
            Trigger(text.encode(), [], lambda rest: True) for text in (thinking.begin, thinking.end)
        )
        self._open = thinking.open
        self._state = 0  # how much of `begin` or `end` has been read
        self._left = thinking.budget
        self._leaving = list(thinking.leave) if thinking.open and not self._left else []
        self._error, self.strikes = "", 0
        self._trail: list[tuple[bool, int, int, list[int]]] = []  # per token, what was the case before it

    @property
    def width(self) -> int:
        return self._width

    @property
    def done(self) -> bool:
        return self._inner is not None and self._inner.done

    @property
    def spoiled(self) -> bool:
        return self._inner is not None and self._inner.spoiled

    @property
    def error(self) -> str:
        return self._inner.error if self._inner is not None else self._error

    @error.setter
    def error(self, error: str) -> None:
        if self._inner is not None:
            self._inner.error = error
        self._error = error

    def accept(self, token: int) -> bool:
        """Take the next token; False if the grammar does not allow it."""
        if self._inner is not None and not self._inner.accept(token):
            return False
        self.position += 1
        self._trail.append((self._open, self._state, self._left, self._leaving))
        if self._leaving:
            self._leaving = self._leaving[1:]
        else:
            self._left -= self._open
        rest: bytes | None = self._pieces[token]
        while rest:
            trigger = self._end if self._open else self._begin
            self._state, rest = trigger.read(self._state, rest)
            if rest is not None:
                self._open, self._state = not self._open, 0
        if self._open and self._left <= 0 and not self._leaving:
            self._leaving = list(self._thinking.leave)
        return True

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens."""
        for _ in range(count):
            self._open, self._state, self._left, self._leaving = self._trail.pop()
        self.position -= count
        if self._inner is not None:
            self._inner.rollback(count)

    def forced(self) -> list[int]:
        """The tokens that follow whatever is drawn."""
        if self._leaving:
            return list(self._leaving)
        return self._inner.forced() if self._inner is not None else []

    def begin(self, bits_W: Bits) -> llguidance.LLMatcher | None:
        """Start to write which tokens may come next; the matcher that has to fill the row, if one has to."""
        if self._leaving and not self.error:
            bits_W.fill(0)
            token = self._leaving[0]
            bits_W.view("uint32")[token >> 5] = 1 << (token & 31)
            return None
        if self._inner is not None:
            return self._inner.begin(bits_W)
        bits_W.fill(ALL)
        return None

    def finish(self, bits_W: Bits) -> None:
        """See `Constraint.finish`."""
        if self._inner is not None and not self._leaving:
            self._inner.finish(bits_W)
