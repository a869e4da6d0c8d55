"""The line: who starts next, by each policy, and that nobody waits for ever."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.scheduler.waiting import LOOK_AHEAD, PATIENCE, Waiting


def request(arrival: int, priority: int = 0) -> Request:
    return Request(arrival, np.ones(4, np.int32), SamplingParams(), limit=8, arrival=arrival, priority=priority)


def order(line: Waiting, cached: dict[int, int] | None = None) -> list[int]:
    return [one.arrival for one in line.candidates(lambda one: (cached or {}).get(one.arrival, 0))]


def filled(policy: str, *priorities: int) -> tuple[Waiting, list[Request]]:
    line = Waiting(policy)
    requests = [request(arrival, priority) for arrival, priority in enumerate(priorities)]
    for one in requests:
        line.add(one)
    return line, requests


def test_first_come_first_served_whatever_the_priority() -> None:
    line, requests = filled("fcfs", 0, 5, 3)
    assert order(line) == [0, 1, 2]
    line.started([requests[0]])
    line.add(requests[0])  # it had to give way, and is still the oldest
    assert order(line) == [0, 1, 2]


def test_priority_first_then_arrival() -> None:
    line, _ = filled("priority", 0, 5, 3, 5)
    assert order(line) == [1, 3, 2, 0]


def test_the_longest_cached_prefix_first_among_those_that_are_looked_at() -> None:
    line, _ = filled("lpm", *[0] * (LOOK_AHEAD + 3))
    last_seen, beyond = LOOK_AHEAD - 1, LOOK_AHEAD + 1
    found = order(line, {3: 8, last_seen: 64, beyond: 1000})
    assert found[:3] == [last_seen, 3, 0], "equals by arrival"
    assert found[-3:] == [LOOK_AHEAD, beyond, LOOK_AHEAD + 2], "so many prefixes are compared and no more"


@pytest.mark.parametrize("policy", ["priority", "lpm"])
def test_who_was_overtaken_often_goes_first(policy: str) -> None:
    line = Waiting(policy)
    old = request(0, priority=-1)
    line.add(old)
    for arrival in range(1, PATIENCE + 1):
        young = request(arrival, priority=1)
        line.add(young)
        assert order(line, {arrival: 9})[0] == arrival
        line.started([young])
    line.add(request(99, priority=9))
    assert old.passed == PATIENCE and order(line, {99: 99})[0] == 0
    line.started([old])
    assert old.passed == 0 and order(line) == [99]


def test_only_later_arrivals_overtake() -> None:
    line, requests = filled("priority", 0, 0, 0)
    line.started([requests[0], requests[2]])
    assert requests[1].passed == 1


@pytest.mark.parametrize("policy", ["fcfs", "priority", "lpm"])
def test_the_version_grows_when_another_may_be_first(policy: str) -> None:
    """What could not start is not tried again while it is the same."""
    line = Waiting(policy)
    chance = random.Random(1)
    known: tuple[int, list[int]] | None = None
    for arrival in range(200):
        if len(line) and chance.random() < 0.3:
            line.remove(chance.choice(list(line)))
        else:
            line.add(request(arrival, chance.randint(-2, 2)))
        first = order(line)[:1]
        if known is not None and known[0] == line.version:
            assert first == known[1]
        known = line.version, first
    line.clear()
    assert len(line) == 0 and line.version > known[0]
