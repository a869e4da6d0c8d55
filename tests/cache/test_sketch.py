"""What is drawn of a tree: twigs, what they share, what goes first, and bounds whatever its size."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.cache import Sketch, sketch
from tests.sim.world import World

PREFIX = [*range(10, 26)]  # four pages


def drawn(world: World) -> dict[str, Any]:
    draw = Sketch(world.kv.tree, world.slots.running)
    for _ in range(1000):
        reply = draw.go_on()
        if reply["done"]:
            tree: dict[str, Any] = reply["tree"]
            return tree
    raise AssertionError("a sketch ends")


def rows(tree: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(tree["twigs"][name] for name in names), strict=True))


def test_an_empty_tree() -> None:
    tree = drawn(World())
    assert (tree["pages"], tree["left_out"], tree["holders"]) == (0, 0, {})
    assert all(column == [] for column in tree["twigs"].values())


def test_a_shared_prefix_is_one_twig_with_its_users_and_hits() -> None:
    world = World(page_size=4, max_num_batched_tokens=64)
    first, second = (world.add([*PREFIX, *([tail] * 9)], 8) for tail in (7, 8))
    world.step()
    world.step()
    tree = drawn(world)
    assert rows(tree, "parent", "pages", "tokens", "users", "hits", "ahead")[0] == (-1, 4, 16, 2, 1, -1)
    below = rows(tree, "parent", "pages", "users", "leases", "hits")[1:]
    assert [(parent, users, hits) for parent, _, users, _, hits in below] == [(0, 1, 0)] * 2
    assert tree["twigs"]["label"][0] == PREFIX and [label[0] for label in tree["twigs"]["label"][1:]] == [7, 8]
    assert sorted(tree["holders"].items()) == [(str(first), 1), (str(second), 2)]
    assert tree["shared"] == 4 and tree["sheltered"] == tree["pages"] == world.kv.tree.num_nodes


def test_what_hangs_from_a_twig_goes_before_it_and_the_oldest_first() -> None:
    world = World(page_size=4)
    for tail in (7, 8):
        world.add([*PREFIX, *([tail] * 8)], 1)
        world.run()
    world.add([1] * 9, 1)
    world.run()
    tree = drawn(world)
    by_label = {label[0]: ahead for label, ahead in rows(tree, "label", "ahead")}
    assert by_label == {7: 0, 8: 2, 10: 4, 1: 8}
    assert [age for label, age in rows(tree, "label", "age") if label[0] == 1] == [0]
    pages = len(world.kv.pools[0].free)
    world.kv.tree.evict(0, 2)
    assert len(world.kv.pools[0].free) == pages + 2
    assert 7 not in {label[0] for label in drawn(world)["twigs"]["label"]}


def test_the_largest_are_told_and_the_rest_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(page_size=4, num_pages=200, max_model_len=256)
    for tail in range(5):
        world.add([*PREFIX, *([30 + tail] * 4 * (1 + tail))], 1)
        world.run()
    whole = drawn(world)
    monkeypatch.setattr(sketch, "MOST_TOLD", 3)
    monkeypatch.setattr(sketch, "SLICE", 2)
    part = drawn(world)
    assert len(part["twigs"]["pages"]) == 3 and part["pages"] == whole["pages"]
    assert sum(part["twigs"]["pages"]) + sum(part["twigs"]["more"]) == whole["pages"]
    assert part["left_out"] == sum(part["twigs"]["more"]) > 0
    assert all(parent < at for at, parent in enumerate(part["twigs"]["parent"]))


def test_a_tree_beyond_the_bound_is_walked_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(page_size=4, num_pages=200)
    for tail in range(6):
        world.add([tail] * 9, 1)
        world.run()
    monkeypatch.setattr(sketch, "MOST_WALKED", 4)
    tree = drawn(world)
    assert len(tree["twigs"]["pages"]) == 4
    assert tree["left_out"] == tree["pages"] - sum(tree["twigs"]["pages"]) > 0


def test_the_tree_may_change_while_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "SLICE", 1)
    world = World(page_size=4)
    draw = Sketch(world.kv.tree, world.slots.running)
    for tail in range(6):
        world.add([*PREFIX, *([30 + tail] * 8)], 4)
        draw.go_on()
        world.run()
        draw.go_on()
    world.kv.flush()
    while not draw.go_on()["done"]:
        pass
    assert drawn(world)["twigs"]["pages"] == []


def test_windows_lose_pages_in_the_middle() -> None:
    world = World(windows=(None, 8), page_size=4)
    world.add([*PREFIX, 1, 2], 12)
    world.run()
    tree = drawn(world)
    assert sum(tree["twigs"]["pages"]) == tree["pages"] == world.kv.tree.num_nodes
    assert tree["holders"] == {}
