"""What a load generator sends: sessions of turns, as token ids or as random words, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sapwood.bench.workloads import FIRST_ID, LAST_ID, Session, Words, behind, general_lengths, requests, talks, tokens

Kind = Literal["sharegpt", "shared-prefix", "agent", "random"]
KINDS: tuple[Kind, ...] = ("sharegpt", "shared-prefix", "agent", "random")

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
class Traffic:
    """What is sent. Lengths are tokens, or words where prompts are text.

    sharegpt       lognormal lengths, as of conversations between people and assistants (W2)
    shared-prefix  `groups` prefixes of `prefix_len`, each before a like number of prompts of `input_len`
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

    def sessions(self, count: int, *, seed: int) -> list[Session]:
        """`count` sessions, of one turn each except those of an agent; the same ones for the same seed."""
        rng = np.random.default_rng(seed)
        words = self._words(rng)
        match self.kind:
            case "sharegpt":
                return requests(words, general_lengths(rng, count))
            case "random":
                inputs, outputs = (self._lengths(rng, mean, count) for mean in (self.input_len, self.output_len))
                return requests(words, zip(inputs, outputs, strict=True))
            case "shared-prefix":
                stems = [words(self.prefix_len) for _ in range(min(self.groups, count))]
                order = rng.permutation(count) % len(stems)
                return behind(words, (stems[i] for i in order), self.input_len, self.output_len)
            case "agent":
                return talks(words, count, self.turns, self.prefix_len, self.input_len, self.output_len)

    def _lengths(self, rng: np.random.Generator, mean: int, count: int) -> list[int]:
        low, high = (max(1, round(mean * (1 + sign * self.spread))) for sign in (-1, 1))
        lengths: list[int] = rng.integers(low, high + 1, count).tolist()
        return lengths

    def _words(self, rng: np.random.Generator) -> Words:
        if self.as_text:
            return lambda count: " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count))
        return tokens(rng, min(FIRST_ID, self.vocab_size // 2), self.vocab_size)


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
