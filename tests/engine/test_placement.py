"""Prompts go where their beginning is, unless too much is to be done there."""

from __future__ import annotations

from random import Random

from sapwood.engine.placement import REQUEST_IS_WORTH, Placement
from sapwood.route.prefixes import Prefixes

LONG = list(range(4 * REQUEST_IS_WORTH))
IDLE = {0: 0, 1: 0}


def test_prompts_go_where_their_beginning_is() -> None:
    placement = Placement(16)
    first = placement.choose(LONG, (), IDLE)
    assert first.reason == "new"
    for _ in range(5):
        assert placement.choose([*LONG, 7, 8], (), IDLE) == (first.engine, "cached")


def test_not_where_too_much_is_to_be_done() -> None:
    placement = Placement(16)
    first, _ = placement.choose(LONG, (), IDLE)
    other = 1 - first
    assert placement.choose(LONG, (), {first: 3, other: 0}) == (first, "cached")
    assert placement.choose(LONG, (), {first: 5, other: 0}) == (other, "balanced")
    assert placement.choose(LONG, (), {first: 2, other: 0}) == (other, "cached"), "now both have it"


def test_what_is_kept_apart_has_nothing_in_common() -> None:
    placement = Placement(16)
    first, _ = placement.choose(LONG, ("a", ""), IDLE)
    assert placement.choose(LONG, ("b", ""), IDLE).reason == "new"
    assert placement.choose(LONG, ("a", "an adapter"), IDLE).reason == "new"
    assert placement.choose(LONG, ("a", ""), IDLE) == (first, "cached")


def test_short_prompts_take_turns() -> None:
    placement = Placement(16)
    assert {placement.choose([1, 2, 3], (), IDLE).engine for _ in range(2)} == {0, 1}


def test_an_engine_that_has_lost_its_cache_has_none() -> None:
    placement = Placement(16)
    first, _ = placement.choose(LONG, (), IDLE)
    placement.forget(first)
    assert placement.choose(LONG, (), IDLE).reason == "new"


def test_only_those_that_may_be_chosen_are() -> None:
    placement = Placement(16)
    first, _ = placement.choose(LONG, (), {0: 0, 1: 0, 2: 0})
    left = {one: 9 for one in range(3) if one != first}
    assert placement.choose(LONG, (), left).engine in left


def test_against_trees_that_are_searched() -> None:
    """The blocks that an engine is believed to have are those of the longest prompt in common that went there."""
    random, placement = Random(0), Placement(4, Prefixes(100_000))
    sent: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    for _ in range(300):
        tokens = [random.randrange(2) for _ in range(random.randrange(1, 40))]
        busy = {one: random.randrange(3) for one in sent}
        engine, reason = placement.choose(tokens, (), busy)
        common = {one: max((_common(tokens, other) for other in prompts), default=0) for one, prompts in sent.items()}
        costs = {one: len(tokens) - 4 * common[one] + REQUEST_IS_WORTH * busy[one] for one in sent}
        assert costs[engine] == min(costs.values())
        most = max(common.values())
        assert reason == ("new" if not most else "cached" if common[engine] == most else "balanced")
        sent[engine].append(tokens)


def _common(one: list[int], other: list[int]) -> int:
    """Whole blocks of 4 that both begin with."""
    blocks = zip(range(0, len(one) - 3, 4), range(0, len(other) - 3, 4), strict=False)
    return next((at // 4 for at, _ in blocks if one[at : at + 4] != other[at : at + 4]), min(len(one), len(other)) // 4)
