"""A drafter that knows the future, and lies about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.draft import Drafter

Oracle = Callable[[Request], Sequence[int]]


class ToyDrafter(Drafter):
    """Proposes what `oracle` says that a request will yield, each token right with the chance `truth`."""

    def __init__(self, oracle: Oracle, *, truth: float, vocab_size: int) -> None:
        self._oracle, self._truth, self._vocab_size = oracle, truth, vocab_size
        self._chance = random.Random(0)

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int]:
        future = self._oracle(request)[len(tokens) - request.prompt_len :]
        length = self._chance.randint(0, count)
        said = [token if self._chance.random() < self._truth else self._lie() for token in future[:length]]
        return said + [self._lie() for _ in range(length - len(said))]

    def _lie(self) -> int:
        return self._chance.randrange(self._vocab_size)
