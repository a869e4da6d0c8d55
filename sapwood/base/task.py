"""What a request wants of a model: tokens, a vector of its text, scores of it, or when it was said."""

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


class Align(msgspec.Struct, frozen=True, tag="align", array_like=True):
    """How much the tokens of the text look at each of the first `frames` positions of the input that it is of: weights of cross-attention of
    `heads`, each a layer and a head, normed over the tokens behind the first `skip`, smoothed, and averaged over the heads. The vector
    is those of each token, one token behind the other."""

    heads: tuple[tuple[int, int], ...]
    skip: int
    frames: int

    @property
    def second(self) -> int:
        return 0

    @property
    def whole(self) -> bool:
        return True


Task = Generate | Embed | Score | Align

GENERATE = Generate()


def tag_of(task: type[Task]) -> str:
    """Its name, where names are wanted."""
    return str(task.__struct_config__.tag)
