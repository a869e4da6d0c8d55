"""A grammar over token ids, made up as it goes along: often it leaves one way, sometimes it is over."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sapwood.base.grammar import Grammar
from sapwood.base.plan import Bits
from sapwood.base.sampling import SamplingParams
from sapwood.grammar.constraint import forbid

TOY = Grammar(kind="regex", text="toy")


class Toy:
    """Stands for a Constraint. What is allowed is a function of `seed` and the tokens so far."""

    def __init__(self, seed: int, position: int, vocab_size: int, stop_ids: Sequence[int] = ()) -> None:
        self.position = position
        self.done = False
        self.error = ""
        self.spoiled = False
        self.strikes = 0
        self._state = seed
        self._trail: list[tuple[int, bool]] = []
        self._vocab_size = vocab_size
        self._stop_ids = stop_ids

    @property
    def width(self) -> int:
        return -(-self._vocab_size // 32)

    def allowed(self) -> list[int]:
        chance = random.Random(self._state)
        count = 1 if chance.random() < 0.6 else chance.randint(2, 10)
        return sorted(chance.sample(range(self._vocab_size), count))

    def accept(self, token: int) -> bool:
        assert not self.done and token in self.allowed(), "a token that the mask forbids"
        self._trail.append((self._state, self.done))
        self._state = hash((self._state, token))
        self.position += 1
        self.done = random.Random(self._state).random() < 0.06
        return True

    def rollback(self, count: int) -> None:
        self.position -= count
        for _ in range(count):
            self._state, self.done = self._trail.pop()

    def forced(self) -> list[int]:
        ahead = Toy(self._state, self.position, self._vocab_size)
        tokens: list[int] = []
        while not ahead.done and len(only := ahead.allowed()) == 1 and only[0] not in self._stop_ids:
            tokens += only
            ahead.accept(only[0])
        return tokens[: random.Random(self._state).choice((1, 3, 99))]

    def begin(self, bits_W: Bits) -> None:
        bits_W.fill(-1)
        allowed = set(self.allowed())
        forbid(bits_W, [token for token in range(self._vocab_size) if token not in allowed])

    def finish(self, bits_W: Bits) -> None:
        pass


def toy_params(**more: object) -> SamplingParams:
    return SamplingParams(grammar=TOY, **more)  # type: ignore[arg-type]
