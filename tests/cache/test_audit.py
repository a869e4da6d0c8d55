"""Books that are wrong in any entry are mended from who is running, and the engine goes on as if nothing had been."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from sapwood.cache.tree import Node
from tests.sim.world import World

Fault = Callable[[World, list[Node], random.Random], None]


def lease(world: World, nodes: list[Node], rng: random.Random) -> None:
    world.kv.tree.lease(rng.choice(nodes))


def users(world: World, nodes: list[Node], rng: random.Random) -> None:
    world.kv.tree.join(nodes[:3])


def window(world: World, nodes: list[Node], rng: random.Random) -> None:
    world.kv.tree.hold(rng.choice([node for node in nodes if node.pages[1] > 0]), 1)


def shelter(world: World, nodes: list[Node], rng: random.Random) -> None:
    rng.choice(nodes).shelters += 1


def page(world: World, nodes: list[Node], rng: random.Random) -> None:
    world.kv.pools[0].free.pop()


def total(world: World, nodes: list[Node], rng: random.Random) -> None:
    world.kv.tree.num_sheltered += 1


@pytest.mark.parametrize("fault", [lease, users, window, shelter, page, total])
def test_every_kind_of_wrong_entry_is_found_and_mended(fault: Fault) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        world = World(windows=(None, 10), num_pages=(60, 40), max_model_len=96)
        stem = [rng.randrange(8, 12) for _ in range(40)]
        for _ in range(6):
            world.add([*stem[: rng.randint(8, 40)], rng.randrange(50)], rng.randint(1, 30))
        for _ in range(rng.randint(4, 14)):
            world.step()
        assert world.scheduler.audit() == 0
        fault(world, list(world.kv.tree.nodes()), rng)
        assert world.scheduler.audit() > 0
        assert world.scheduler.audit() == 0
        world.check()
        world.run()
        world.check_outputs()
        world.check_rest()
