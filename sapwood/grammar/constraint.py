"""One output on its way through its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import llguidance
import numpy as np

from sapwood.base.plan import Bits
from sapwood.grammar.compiler import Compiled

ALL = np.int32(-1)


class Follows(Protocol):
    """What is needed of a constraint; `Constraint` says what each means."""

    strikes: int

    @property
    def position(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def done(self) -> bool: ...
    @property
    def spoiled(self) -> bool: ...
    @property
    def error(self) -> str: ...
    @error.setter
    def error(self, error: str) -> None: ...

    def accept(self, token: int) -> bool: ...
    def rollback(self, count: int) -> None: ...
    def forced(self) -> list[int]: ...
    def begin(self, bits_W: Bits) -> llguidance.LLMatcher | None: ...
    def finish(self, bits_W: Bits) -> None: ...


class Constraint:
    """Follows the tokens of one sequence, and knows which may come next.

    Args:
        compiled: The grammar.
        position: The length of the sequence before its output, which is the position of the first token.
        min_len: The length before which `stop_ids` are not allowed, unless nothing else is.
        stop_ids: The tokens that end this output.
        alone: Nobody else uses the compiled grammar.

    Attributes:
        position: Where the next token will stand.
        done: The text is complete and nothing may follow.
        error: Why the grammar cannot be followed any further; nothing is restricted then.
        strikes: How often it took too long; the caller counts.
    """

    __slots__ = ("_alone", "_early", "_min_len", "_shut", "_state", "_trail", "compiled", "done", "error", "matcher", "position",
                 "strikes")  # fmt: skip

    def __init__(
        self,
        compiled: Compiled,
        *,
        position: int,
        min_len: int = 0,
        stop_ids: Sequence[int] = (),
        alone: bool = False,
    ) -> None:
        self.compiled = compiled
        self._alone = alone
        self.position = position
        self.done = False
        self.error = ""
        self.strikes = 0
        self.matcher: llguidance.LLMatcher | None = None if compiled.trigger else compiled.matcher.deep_copy()
        self._state = 0
        self._trail: list[tuple[int, list[int]]] = []  # per token: the trigger's state before, tokens of the matcher
        self._min_len = min_len
        self._early = [id for id in stop_ids if id < 32 * compiled.vocabulary.width]
        # The tokenizer's ends of sequence that do not end this output: the grammar would be over, but not the text.
        self._shut = [id for id in compiled.vocabulary.eos_ids if id not in stop_ids]

    @property
    def spoiled(self) -> bool:
        """Whether it stopped because of what its matcher shares with others, who may have brought that about."""
        return bool(self.error) and self.compiled.spoiled and not self._alone

    @property
    def width(self) -> int:
        """int32 words of a mask."""
        return self.compiled.vocabulary.width

    def accept(self, token: int) -> bool:
        """Take the next token; False if the grammar does not allow it, or cannot say (`error`)."""
        if self.error:
            return False
        before = self._state
        if self.matcher is None:
            taken = self._read(token)
        else:
            taken = [token]
        if taken and not self._consume(taken):
            self._state = before
            return False
        self._trail.append((before, taken))
        self.position += 1
        return True

    def _read(self, token: int) -> list[int]:
        """Take a token of the free text; the grammar's first tokens, where it ends with this one."""
        trigger, vocabulary = self.compiled.trigger, self.compiled.vocabulary
        assert trigger is not None
        self._state, rest = trigger.read(self._state, vocabulary.pieces[token])
        if rest is None:
            return []
        self.matcher = self.compiled.matcher.deep_copy()
        return list(vocabulary.tokenizer.tokenize_bytes(rest)) if rest else []

    def _consume(self, tokens: list[int]) -> bool:
        assert self.matcher is not None
        if not self.matcher.consume_tokens(tokens):
            self._fail()
            return False
        self.done = self.matcher.is_stopped()
        self.compiled.num_followed += len(tokens)
        return True

    def _fail(self) -> None:
        assert self.matcher is not None
        self.error = "its grammar cannot be followed any further: " + " ".join(self.matcher.get_error().split())
        self.compiled.spoiled = True

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens, and what went wrong behind those that are left."""
        taken = 0
        for _ in range(count):
            self._state, tokens = self._trail.pop()
            taken += len(tokens)
        self.position -= count
        if self.compiled.trigger is not None and self._state < len(self.compiled.trigger.after):
            self.matcher, self.error = None, ""
        elif self.error:
            self._renew()
        elif taken and self.matcher is not None:
            self.matcher.rollback(taken)
        self.done = self.matcher is not None and self.matcher.is_stopped()

    def _renew(self) -> None:
        """Follow the tokens so far with a matcher that has not failed: one that has stays so."""
        self.matcher, self.error = self.compiled.matcher.deep_copy(), ""
        self._consume([token for _, tokens in self._trail for token in tokens])

    def forced(self) -> list[int]:
        """The tokens that follow whatever is drawn, as the tokenizer would write them; empty where there is a choice.

        Bytes that are certain while their tokens are not, because what follows might be merged with them, wait.
        """
        if self.matcher is None or self.done or self.position < self._min_len or not self.compiled.forcing:
            return []
        tokens: list[int] = self.matcher.compute_ff_tokens()
        ends = {*self._early, *self._shut, *self.compiled.vocabulary.eos_ids}
        cut = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[:cut]

    def begin(self, bits_W: Bits) -> llguidance.LLMatcher | None:
        """Start to write which tokens may come next; the matcher that has to fill the row, if one has to."""
        if self.matcher is not None and not self.error:
            return self.matcher
        bits_W.fill(ALL)
        if self.matcher is None and self.compiled.trigger is not None:
            forbid(bits_W, self.compiled.trigger.closed.get(self._state, ()))
        return None

    def finish(self, bits_W: Bits) -> None:
        """Take out of a filled row the ends that would come too soon, as long as anything else is left."""
        if self.matcher is not None and self.matcher.is_error() and not self.error:
            self._fail()
            bits_W.fill(ALL)
        ends = self._shut if self.matcher is not None else []
        if self.position < self._min_len:
            ends = ends + self._early
        spare(bits_W, ends)


def spare(bits_W: Bits, ends: Sequence[int]) -> None:
    """Take ends out, as long as anything else is left."""
    # A look at single words first: this runs for every row of every step, and mostly no end is allowed anyhow.
    if any(allows(bits_W, token) for token in ends):
        kept = bits_W.copy()
        forbid(bits_W, ends)
        if not bits_W.any():
            bits_W[:] = kept


def allows(bits_W: Bits, token: int) -> bool:
    return bool(bits_W.item(token >> 5) >> (token & 31) & 1)


def forbid(bits_W: Bits, tokens: Sequence[int]) -> None:
    words = bits_W.view(np.uint32)
    for token in tokens:
        words[token >> 5] &= ~np.uint32(1 << (token & 31))
