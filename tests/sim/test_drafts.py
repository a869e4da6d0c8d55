"""Drafts, right and wrong, on the fake device: outputs are those without them, token for token."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sapwood.base.kv import most_rewound
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.draft import DraftStake
from tests.sim.drafter import ToyDrafter
from tests.sim.test_scheduler import SHAPES, workload
from tests.sim.toy import Toy
from tests.sim.world import World, expected


def drafted(most: int, truth: float) -> Callable[[Slots], Sequence[Stake]]:
    @functools.cache
    def oracle(request: Request) -> list[int]:
        toy = None if request.constraint is None else Toy(request.id, request.prompt_len, 50, request.stop_ids)
        return expected(request.tokens[: request.prompt_len].tolist(), request.limit, request.stop_ids, 50, toy)

    return lambda slots: (DraftStake(slots, (ToyDrafter(oracle, truth=truth, vocab_size=50),), most=most),)


@pytest.mark.parametrize("shape", [*SHAPES, {"jump": False, "depth": 2, "num_pages": 24, "max_model_len": 64}], ids=str)
@pytest.mark.parametrize("toys", [0.0, 0.5])
def test_random_workloads(shape: dict[str, Any], toys: float) -> None:
    saved = 0
    for seed in range(int(2 * toys), 60, 2):
        rng = random.Random(seed)
        most = rng.choice((1, 2, 5))
        stakes = drafted(most, rng.choice((0.0, 0.5, 0.9, 1.0)))
        world = World(**shape | {"rewind": most_rewound(most, shape.get("depth", 1)), "stakes": stakes})
        longest = min(shape.get("max_model_len", 128), 60)
        poison = shape.get("poison")
        workload(world, rng, num_requests=rng.randint(1, 24), longest=longest, poison=poison, toys=toys)
        world.run()
        world.check_outputs()
        world.check_rest()
        saved += sum(int((plan.heads_R - 1).clip(0).sum()) for plan in world.plans)
    assert saved > 100


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_right_drafts_save_steps(depth: int) -> None:
    steps = []
    for most in (0, 3):
        world = World(depth=depth, max_model_len=256, num_pages=128, stakes=drafted(most, 1.0))
        for number in range(4):
            world.add([number + 8, 9], 100)
        world.run()
        world.check_outputs()
        steps.append(world.device.num_steps)
    assert steps[1] < 0.75 * steps[0]
