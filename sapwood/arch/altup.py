"""Blocks that work on one of several streams and correct the others (Baykal et al., 2023), as Gemma 3n has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sapwood.arch.beside import Factor
from sapwood.arch.parts import Activation, Block, Linear, Norm


@dataclass(frozen=True)
class Laurel:
    """x + norm(right(left(x)))."""

    left: Linear
    right: Linear
    norm: Norm


@dataclass(frozen=True)
class Altered(Block):
    """A block of several streams of tokens' vectors, on the first of which it works.

    Streams are predicted from all of them, by coefficients that follow from the first: p_j = s_j + sum of c_ji s_i. Of the first
    prediction x it makes y = (x + after(mixer(norm(x))) + laurel(norm(x))) / sqrt(2), and adds the ffn as ever. All predictions
    are corrected by y - x, each as far as coefficients say that follow from y. The others have added to them what is `beside`
    the first, times `scaled`. A coefficient follows from tanh(router(router_norm(x) / hidden size)).
    """

    laurel: Laurel | None = None
    router: Linear | None = None
    router_norm: Norm | None = None
    predict: Linear | None = None
    correct: Linear | None = None
    scaled: Factor | None = None


@dataclass(frozen=True)
class Streams:
    """How tokens' vectors become streams, the first as they are and each other by a part of `spread`, and streams in the end their
    mean, each of the others by its part of `gather`; what is projected has the magnitude of the first."""

    spread: Linear
    gather: Linear


@dataclass(frozen=True)
class SparseMlp:
    """down(activation(relu(gate - most)) * up), where `most` is the mean of a token's gates and `deviations` standard deviations."""

    gate_up: Linear
    down: Linear
    activation: Activation
    deviations: float

    indivisible: ClassVar[bool] = True
