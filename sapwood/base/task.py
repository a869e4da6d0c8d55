"""What a request wants of a model: tokens, a vector of its text, or scores of it."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Pooling = Literal["cls", "last", "mean", "weighted"]
"""How the states of a text's tokens become one vector: that of its first token (BERT's [CLS]) or of its last, their mean, or their mean weighed by
position, 1 for the first token, 2 for the next."""

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


class Generate(msgspec.Struct, frozen=True, tag="generate", array_like=True):
    """Tokens."""

    @property
    def second(self) -> int:
        return 0

    @property
    def whole(self) -> bool:
        """Whether the state of every token of the text is wanted, so that none may come from a cache."""
        return False


class Embed(msgspec.Struct, frozen=True, tag="embed", array_like=True):
    """One vector. Of two texts in one, `second` is where the second begins; 0 of a single one."""

    pooling: Pooling = "last"
    second: int = 0

    @property
    def whole(self) -> bool:
        return self.pooling != "last"


class Score(msgspec.Struct, frozen=True, tag="score", array_like=True):
    """What the model's classifier makes of that vector, a number for each of its labels."""

    pooling: Pooling = "last"
    second: int = 0

    @property
    def whole(self) -> bool:
        return self.pooling != "last"


Task = Generate | Embed | Score

GENERATE = Generate()


def tag_of(task: type[Task]) -> str:
    """Its name, where names are wanted."""
    return str(task.__struct_config__.tag)
