"""Where a prompt first differs from what is cached."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.cache import Explanation
from tests.sim.world import World

LONG = list(range(8, 28))  # five pages of four


def said(*prompts: list[int], **options: Any) -> Explanation:
    world = World(**options)
    for prompt in prompts:
        world.add(prompt, 2, namespace="\0")
        world.run()
    return Explanation(world.kv)


@pytest.mark.parametrize(
    ("prompt", "cached", "differs", "instead"),
    [
        (LONG, 16, 20, None),
        ([*LONG[:10], 40, 41], 8, 10, [18, 19]),
        (LONG[:8] + [40] * 9, 8, 8, LONG[8:12]),
        ([40, *LONG], 0, 0, LONG[:4]),
        ([*LONG, 40, 41, 42, 43, 44], 20, 20, None),
        (LONG[:6], 4, 6, [14, 15]),
    ],
)
def test_where_it_differs(prompt: list[int], cached: int, differs: int, instead: list[int] | None) -> None:
    found = said(LONG)(tokens=prompt, salt="")
    assert (found["cached"], found["differs"]) == (cached, differs)
    assert instead is None or found["instead"] == instead


def test_the_closest_is_told() -> None:
    explain = said(LONG, [8, 9, 40, 41, 42, 43], [8, 45, 46, 47, 48, 49])
    assert explain(tokens=[8, 9, 40, 44, 44, 44], salt="") == {"cached": 0, "differs": 3, "instead": [41]}


def test_nobody_sees_what_others_have() -> None:
    explain = said(LONG)
    nothing = {"cached": 0, "differs": 0, "instead": []}
    assert explain(tokens=LONG, salt="other") == explain(tokens=LONG, salt="", adapter="other") == nothing
    assert said(LONG, reuse=False)(tokens=LONG, salt="") == nothing
    assert said()(tokens=LONG, salt="") == nothing


def test_looking_changes_nothing() -> None:
    world = World()
    world.add(LONG, 2, namespace="\0")
    world.run()
    before = [(node.used, node.hits, node.leases) for node in world.kv.tree.nodes()]
    Explanation(world.kv)(tokens=LONG, salt="")
    assert [(node.used, node.hits, node.leases) for node in world.kv.tree.nodes()] == before
    world.check_rest()


def test_of_a_window_as_much_as_is_there() -> None:
    explain = said(LONG, windows=(7,), num_pages=30, max_model_len=96)
    found = explain(tokens=LONG, salt="")
    assert found["differs"] == 20 and found["cached"] <= 16
