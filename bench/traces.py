"""Traces for a fleet: who begins to talk when, what each turn adds, and how long people and tools think in between.

A trace is made from a seed, so it can be replayed exactly, by the simulation or against real servers (`bench/fleet.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sapwood.base.plan import Ints

FIRST_ID, LAST_ID = 10, 10_000  # tokens are uniform in between
LONGEST = 24_000  # tokens of a session: one that would be longer ends before


@dataclass(frozen=True)
class Turn:
    """What a request adds to its session, how many tokens answer it, and the seconds until the next one is sent."""

    tokens: Ints
    output_len: int
    pause: float


@dataclass(frozen=True)
class Talk:
    """A session that begins `at` so many seconds after the trace does."""

    at: float
    name: str
    turns: list[Turn]


class Dice:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def tokens(self, count: int) -> Ints:
        return self.rng.integers(FIRST_ID, LAST_ID, count, dtype=np.int32)

    def length(self, median: float, sigma: float, most: int) -> int:
        """Lognormal, as lengths of what people and tools write are."""
        return int(np.clip(np.rint(self.rng.lognormal(np.log(median), sigma)), 4, most))

    def zipf(self, count: int) -> Callable[[], int]:
        """Draws one of `count`, the k-th with a probability of about 1 / k."""
        shares = 1 / np.arange(1, count + 1)
        borders = np.cumsum(shares / shares.sum())
        return lambda: min(int(np.searchsorted(borders, self.rng.random())), count - 1)

    def arrivals(self, rate: float, seconds: float) -> Iterator[float]:
        """Poisson, `rate` a second."""
        now = self.rng.exponential(1 / rate)
        while now < seconds:
            yield now
            now += self.rng.exponential(1 / rate)


def agents(rate: float, seconds: float, seed: int) -> list[Talk]:
    """Agents of 64 kinds, a few of which are used most, each with a system prompt and tools of 2,048 tokens: about 6 turns of a
    tool's output (median 200 tokens, some of thousands), answers of about 120, about 4 s apart."""
    dice = Dice(seed)
    systems, kind = [dice.tokens(2048) for _ in range(64)], dice.zipf(64)
    talks = []
    for number, at in enumerate(dice.arrivals(rate, seconds)):
        turns, total = [], 0
        for turn in range(min(int(dice.rng.geometric(1 / 6)), 40)):
            own = dice.tokens(dice.length(200, 1.2, 8000))
            tokens = np.concatenate([systems[kind()], own]) if not turn else own
            output_len = dice.length(120, 0.8, 1024)
            total += len(tokens) + output_len
            if total > LONGEST:
                break
            turns.append(Turn(tokens, output_len, float(dice.rng.exponential(4.0))))
        talks.append(Talk(at, f"agent-{number}", turns))
    return talks


def documents(rate: float, seconds: float, seed: int) -> list[Talk]:
    """Questions of 64 tokens about one of 1,000 documents of 4,096 tokens, answers of about 100."""
    dice = Dice(seed)
    texts, which = [dice.tokens(4096) for _ in range(1000)], dice.zipf(1000)
    return [
        Talk(
            at,
            f"asker-{number}",
            [Turn(np.concatenate([texts[which()], dice.tokens(64)]), dice.length(100, 0.6, 512), 0)],
        )
        for number, at in enumerate(dice.arrivals(rate, seconds))
    ]


def bursts(rate: float, seconds: float, seed: int) -> list[Talk]:
    """Chats of about 3 turns under one short system prompt, 10 s apart; in 10 of each 40 seconds four times as many begin as in the
    others."""
    dice = Dice(seed)
    system = dice.tokens(300)
    quiet = rate / (1 + 3 * 10 / 40)
    talks = []
    for number, at in enumerate(dice.arrivals(4 * quiet, seconds)):
        if at % 40 >= 10 and dice.rng.random() >= 0.25:
            continue
        turns = []
        for turn in range(min(int(dice.rng.geometric(1 / 3)), 20)):
            own = dice.tokens(dice.length(120, 1.1, 1024))
            tokens = np.concatenate([system, own]) if not turn else own
            turns.append(Turn(tokens, dice.length(150, 0.9, 1024), float(dice.rng.exponential(10.0))))
        talks.append(Talk(at, f"chat-{number}", turns))
    return talks


KINDS = {"agents": agents, "documents": documents, "bursts": bursts}
