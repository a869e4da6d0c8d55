"""Random workloads on the fake device: every invariant at every step, every output as if it had been alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sapwood.base.kv import Heads, State
from sapwood.base.sampling import SamplingParams
from tests.sim.toy import toy_params
from tests.sim.world import World

FULL, NARROW, STATE = Heads(1, 1, 1), Heads(1, 1, 1, 7), State(((1,),))
CHUNKS = Heads(1, 1, 1, 10, chunked=True)
SHAPES: list[dict[str, Any]] = [
    {},
    {"depth": 0},
    {"depth": 3},
    {"num_pages": 24, "max_model_len": 64},
    {"num_pages": 20, "max_model_len": 64, "depth": 0, "policy": "priority"},
    {"windows": (None, 10), "num_pages": (40, 30), "max_model_len": 96},
    {"windows": (7,), "num_pages": 30, "max_model_len": 96},
    {"kinds": (FULL, STATE), "num_pages": (24, 12), "max_model_len": 64, "depth": 0},
    {"kinds": (FULL, NARROW, STATE), "num_pages": (40, 30, 16), "max_model_len": 96},
    {"kinds": (FULL, CHUNKS), "num_pages": (40, 30), "max_model_len": 96},
    {"kinds": (STATE,), "num_pages": 14, "depth": 2, "rewind": 1},
    {"windows": (None, 6), "num_pages": (24, 22), "max_model_len": 64, "depth": 2, "policy": "lpm"},
    {"page_size": 1, "num_pages": 70, "max_model_len": 48},
    {"page_size": 16, "num_pages": 9, "max_num_seqs": 6, "policy": "lpm"},
    {"reuse": False, "num_pages": 40},
    {"max_num_seqs": 16, "max_num_batched_tokens": 40, "num_pages": 80, "chunked_prefill_size": 5},
    {"poison": 7, "num_pages": 30, "max_model_len": 64},
    {"policy": "fair", "num_pages": 24, "max_model_len": 64, "max_num_seqs": 5},
]


def workload(
    world: World, rng: random.Random, *, num_requests: int, longest: int, poison: int | None, toys: float = 0.0
) -> None:
    """Requests with shared beginnings arrive, run and are aborted at random."""
    stems = [[rng.randrange(8, 12) for _ in range(longest)] for _ in range(3)]
    alive: list[int] = []
    left = num_requests
    while left or alive:
        while left and rng.random() < 0.5:
            left -= 1
            prompt = rng.choice(stems)[: rng.randint(1, longest - 9)]
            prompt = prompt + [rng.randrange(8, 50) for _ in range(rng.randint(0, 3))]
            if poison is not None and rng.random() < 0.2:
                prompt.append(poison)
            room = longest - len(prompt)
            curious = rng.random() < 0.15
            params = SamplingParams(prompt_logprobs=0 if rng.random() < 0.1 else None, return_hidden_states=curious)
            if rng.random() < toys:
                params = toy_params(logprobs=0 if rng.random() < 0.2 else None, return_hidden_states=curious)
            alive.append(
                world.add(
                    prompt,
                    rng.randint(1, room),
                    stop_ids=(3, 4) if rng.random() < 0.5 else (),
                    priority=rng.randrange(3),
                    namespace=rng.choice(["", "", "other"]),
                    tenant=rng.choice("aaab"),
                    params=params,
                )
            )
        if alive and rng.random() < 0.05:
            world.abort(rng.choice(alive))
        if rng.random() < 0.02:
            world.scheduler.retract()
        world.step()
        alive = [id for id in alive if id not in world.finish]


@pytest.mark.parametrize("shape", [*SHAPES, {"jump": False, "num_pages": 24, "max_model_len": 64}], ids=str)
def test_constrained_requests_beside_free_ones(shape: dict[str, Any]) -> None:
    """Forced tokens, late masks and ends that only the grammar knows change nothing in what anybody gets."""
    forced = 0
    for seed in range(40):
        rng = random.Random(seed)
        world = World(**shape)
        longest = min(shape.get("max_model_len", 128), 60)
        poison = shape.get("poison")
        workload(world, rng, num_requests=rng.randint(1, 24), longest=longest, poison=poison, toys=rng.choice((1, 0.5)))
        world.run()
        world.check_outputs()
        world.check_rest()
        forced += world.constraints.counters["forced_tokens"]
    assert (forced > 100) == shape.get("jump", True)


def test_forced_tokens_save_steps() -> None:
    steps = []
    for jump in (True, False):
        world = World(jump=jump, max_model_len=256, num_pages=80, depth=1)
        for number in range(20):
            world.add([number + 8, 9], 100, params=toy_params())
        world.run()
        world.check_outputs()
        steps.append(world.device.num_steps)
    assert steps[0] < 0.9 * steps[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_workloads(shape: dict[str, Any]) -> None:
    for seed in range(80):
        rng = random.Random(seed)
        world = World(**shape)
        longest = min(shape.get("max_model_len", 128), 60)
        workload(world, rng, num_requests=rng.randint(1, 24), longest=longest, poison=shape.get("poison"))
        world.run()
        world.check_outputs()
        world.check_rest()
