"""Where states are left, and who begins with them."""

from __future__ import annotations

from sapwood.base.kv import Heads, State
from tests.sim.world import World

STATE = State(((1,),))
STEM = [*range(10, 30)]


def test_the_next_request_begins_behind_the_last_page_of_a_prompt() -> None:
    world = World(kinds=(STATE,), num_pages=16)
    first = world.add([*STEM, 5, 6], 1)
    world.run()
    second = world.add([*STEM, 5, 6], 1)
    world.run()
    assert world.cached == {first: 0, second: 20}


def test_a_conversation_goes_on_from_its_last_answer() -> None:
    world = World(kinds=(Heads(1, 1, 1), STATE), num_pages=(64, 12))
    first = world.add(STEM, 9)
    world.run()
    history = [*STEM, *world.output[first]]
    second = world.add([*history, 1, 2, 3], 1)
    world.run()
    assert world.cached[second] == 28, "the last border before the token that was never fed"


def test_where_paths_part_the_third_request_begins() -> None:
    world = World(kinds=(Heads(1, 1, 1), STATE), num_pages=(64, 16), max_num_batched_tokens=64)
    ids = []
    for end in (1, 2, 3):
        ids.append(world.add([*STEM, *[end] * 10], 1))
        world.run()
    assert [world.cached[id] for id in ids] == [0, 0, 20]


def test_who_can_follow_waits_for_a_step() -> None:
    world = World(kinds=(STATE,), num_pages=24, max_num_batched_tokens=64)
    for _ in range(3):
        world.add(STEM, 1)
    world.run()
    assert world.device.num_fed == 16 + 3 * 4, "the beginning is computed once"
    world.check_outputs()


def test_a_long_prompt_needs_few_states() -> None:
    world = World(kinds=(Heads(1, 1, 1), STATE), num_pages=(64, 5), max_num_batched_tokens=64)
    long = world.add([*range(100)], 20)
    world.run()
    assert world.finish[long] == "length" and world.scheduler.num_preempted == 0
    world.check_outputs()
    world.check_rest()
