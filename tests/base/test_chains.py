"""Hash chains against looking everywhere."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sapwood.base.chains import Chains, Match
from sapwood.base.plan import Ints


def everywhere(text: Ints, count: int, tail: Ints, length: int) -> list[Match]:
    """All places where the text ends like the tail, the last one first."""
    found = []
    for place in range(count, length - 1, -1):
        same = 0
        while same < min(place, len(tail), 32) and text[place - 1 - same] == tail[-1 - same]:
            same += 1
        if same >= length:
            found.append(Match(place, same))
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("words", [2, 6, 50_000])
def test_the_places_are_those_found_by_looking_everywhere(length: int, words: int) -> None:
    rng = random.Random(length * words)
    text: Ints = np.array([rng.randrange(words) for _ in range(1500)], np.int32)
    text[700:900] = text[100:300]
    chains, count = Chains(length), 0
    while count < len(text):
        count = min(count + rng.choice((0, 1, 2, 3, 7, 40, 400)), len(text))
        chains.extend(text, count)
        for end in (count, rng.randrange(len(text) + 1), min(850, count)):
            tail = text[:end]
            wanted = everywhere(text, count, tail, length) if end >= length else []
            # Others of the same hash are looked at too, so that few are missing where there are many.
            assert list(chains.matches(text, tail, 10_000)) == wanted


def test_only_some_are_looked_at() -> None:
    text: Ints = np.zeros(400, np.int32)
    chains = Chains(2)
    chains.extend(text, 400)
    assert [match.place for match in chains.matches(text, text[:9], 3)] == [400, 399, 398]
    assert {match.length for match in chains.matches(text, text[:9], 3)} == {9}
    assert not list(chains.matches(text, text[:1], 3))
