"""Which of several engines a request goes to: where its beginning likely lies already, unless too much is there to do.

An engine's tree of prefixes is its own. From outside one knows what it has been sent, and that it forgets what it has not used for
long (`route.prefixes`); a prompt is a chain of blocks of tokens, each with a number for itself and all before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from sapwood.route.prefixes import Prefixes

REQUEST_IS_WORTH = 512
"""Tokens of a prompt that have to be computed anew are as bad as a request that runs already."""
MOST_BLOCKS = 4096
"""Of a prompt, that are looked at: two that have so much in common go to the same engine anyway."""

Reason = Literal["cached", "balanced", "new", "together"]


class Placed(NamedTuple):
    """`cached`: the engine has most of what any has of the prompt; `balanced`: another has more, and much to do; `new`: none has any;
    `together`: where the output before of the same request has gone."""

    engine: int
    reason: Reason


class Placement:
    """Places prompts on engines that are numbered from 0. `block` are the tokens of one of theirs pages, which is what they reuse."""

    def __init__(self, block: int, prefixes: Prefixes | None = None) -> None:
        self._block, self._prefixes = block, prefixes or Prefixes()
        self._turn = 0

    def choose(self, tokens: Sequence[int], apart: tuple[str, ...], busy: Mapping[int, int]) -> Placed:
        """One of the engines in `busy`, which has how many requests each has under way, and note that it was chosen. Prompts with
        another `apart` (salt, adapter) have nothing in common."""
        blocks = self._blocks(tokens, apart)
        held = {int(name): count for name, count in self._prefixes.held(blocks, map(str, busy)).items()}
        most = max(held.values())
        self._turn += 1  # so that equals take turns

        def left(one: int) -> tuple[int, int]:
            new = len(tokens) - self._block * held[one]
            return new + REQUEST_IS_WORTH * busy[one], (one + self._turn) % (max(busy) + 1)

        chosen = min(busy, key=left)
        self._prefixes.note(blocks, str(chosen))
        return Placed(chosen, "new" if not most else "cached" if held[chosen] == most else "balanced")

    def forget(self, engine: int) -> None:
        """It has lost its cache."""
        self._prefixes.forget(str(engine))

    def _blocks(self, tokens: Sequence[int], apart: tuple[str, ...]) -> list[int]:
        number, blocks, size = hash(apart), [], self._block
        for end in range(size, min(len(tokens), size * MOST_BLOCKS) + 1, size):
            number = hash((number, *tokens[end - size : end]))
            blocks.append(number)
        return blocks
