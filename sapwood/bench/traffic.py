"""What is sent: sessions of turns, as token ids or as random words, and when they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Kind = Literal["sharegpt", "shared-prefix", "agent", "random"]
KINDS: tuple[Kind, ...] = ("sharegpt", "shared-prefix", "agent", "random")

Prompt: TypeAlias = list[int] | str
FIRST_ID, LAST_ID = 10, 10_000
"""Token ids are uniform in [10, 10000) where nothing else is said."""

WORDS = tuple(
    """time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city community name team minute idea body back parent face level
    office door health person art war history party result change morning reason research girl guy moment air teacher
    force education""".split()
)
"""Common words, most of them one token in any vocabulary."""


@dataclass(frozen=True)
class Turn:
    """What one request adds to its session's history, and how many tokens it generates."""

    prompt: Prompt
    output_len: int

    @property
    def tokens(self) -> list[int]:
        assert isinstance(self.prompt, list)
        return self.prompt


Session: TypeAlias = list[Turn]


def join(history: Prompt, more: Prompt) -> Prompt:
    """A prompt, continued."""
    if isinstance(history, str):
        return f"{history} {more}" if history else more
    assert isinstance(more, list)
    return history + more


@dataclass(frozen=True)
class Traffic:
    """What sessions are like. Lengths are tokens, or words where prompts are text, and shrink by `shrink` once drawn.

    sharegpt       lognormal lengths with medians 120 and 150, within 4 to 1024, as of people and assistants
    shared-prefix  `groups` prefixes of `prefix_len`, each before a like number of prompts of `input_len`, shuffled
    agent          sessions of `turns` turns of `input_len` over one prefix of `prefix_len`
    random         prompts of `input_len`; lengths vary by up to `spread` of themselves, both ways
    """

    kind: Kind = "sharegpt"
    input_len: int = 128
    output_len: int = 128
    prefix_len: int = 2048
    groups: int = 32
    turns: int = 8
    spread: float = 0.0
    as_text: bool = False
    vocab_size: int = LAST_ID
    shrink: float = 1.0

    def sessions(self, count: int, *, seed: int) -> list[Session]:
        """`count` sessions, of one turn each except those of an agent; the same ones for the same seed."""
        rng = np.random.default_rng(seed)
        match self.kind:
            case "sharegpt":
                medians = ((120.0, 1.1), (150.0, 0.9))
                drawn = [rng.lognormal(np.log(median), sigma, count) for median, sigma in medians]
                return self._requests(rng, *(np.clip(np.rint(lengths), 4, 1024).astype(int) for lengths in drawn))
            case "random":
                return self._requests(
                    rng, *(self._around(rng, mean, count) for mean in (self.input_len, self.output_len))
                )
            case "shared-prefix":
                return self._behind_prefixes(rng, count, seed)
            case "agent":
                return self._talks(rng, count)

    def _around(self, rng: np.random.Generator, mean: int, count: int) -> Iterable[int]:
        low, high = (max(1, round(mean * (1 + sign * self.spread))) for sign in (-1, 1))
        return rng.integers(low, high + 1, count)

    def _requests(self, rng: np.random.Generator, inputs: Iterable[int], outputs: Iterable[int]) -> list[Session]:
        words = self._words(rng)
        return [[Turn(words(i), self._length(o))] for i, o in zip(inputs, outputs, strict=True)]

    def _behind_prefixes(self, rng: np.random.Generator, count: int, seed: int) -> list[Session]:
        words, output_len = self._words(rng), self._length(self.output_len)
        stems = [words(self.prefix_len) for _ in range(min(self.groups, count))]
        prompts = [join(stems[i * len(stems) // count], words(self.input_len)) for i in range(count)]
        return [[Turn(prompts[i], output_len)] for i in np.random.default_rng(seed).permutation(count)]

    def _talks(self, rng: np.random.Generator, count: int) -> list[Session]:
        words, output_len = self._words(rng), self._length(self.output_len)
        system, later = words(self.prefix_len), [self.input_len] * (self.turns - 1)
        return [
            [Turn(join(system, words(self.input_len)), output_len), *(Turn(words(own), output_len) for own in later)]
            for _ in range(count)
        ]

    def _length(self, drawn: int) -> int:
        return max(1, round(drawn * self.shrink))

    def _words(self, rng: np.random.Generator) -> Callable[[int], Prompt]:
        """Makes a prompt of so many tokens, or words, before they shrink."""
        if self.as_text:
            return lambda drawn: " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), self._length(drawn)))
        first = min(FIRST_ID, self.vocab_size // 2)
        return lambda drawn: rng.integers(first, self.vocab_size, self._length(drawn)).tolist()


def arrivals(count: int, rate: float, *, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """Seconds after the start at which each of `count` sessions comes, `rate` a second on average.

    Gaps are gamma distributed: burstiness 1 is a Poisson process, below 1 is burstier, above 1 more even. An infinite
    rate brings all at once.
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), count)
    times: list[float] = np.cumsum(gaps).tolist()
    return times
