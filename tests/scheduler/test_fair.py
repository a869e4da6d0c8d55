"""Tenants in turns: whose request starts next, what it costs, and whose slot is given up."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import numpy as np
import pytest

from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.scheduler.fair import QUANTUM, Fair, cost
from tests.sim.world import World


class Desk:
    """Hands requests to a line, and starts them as a planner does."""

    def __init__(self) -> None:
        self.line = Fair()
        self.running: list[Request] = []
        self._next = 0

    def add(self, tenant: str, size: int = QUANTUM, *, weight: float = 1.0, priority: int = 0) -> Request:
        self._next += 1
        one = Request(
            self._next,
            np.ones(size, np.int32),
            SamplingParams(),
            limit=size + 9,
            arrival=self._next,
            tenant=tenant,
            weight=weight,
            priority=priority,
        )
        self.line.add(one)
        return one

    def start(self, most: int = 1, cached: int = 0) -> list[Request]:
        """What starts, at most so many."""
        admitted: list[Request] = []
        for one in self.line.candidates(lambda _: 0):
            if len(admitted) == most:
                break
            one.cached_tokens = cached
            admitted.append(one)
        self.line.started(admitted)
        self.running += admitted
        return admitted

    def end(self, one: Request, output: int = 0) -> None:
        self.running.remove(one)
        self.line.left(one, len(one.tokens) + output)


def names(requests: Sequence[Request]) -> str:
    return "".join(one.tenant for one in requests)


def test_tenants_take_turns_however_much_they_ask_for() -> None:
    desk = Desk()
    for tenant in "aaaaaaaabb":
        desk.add(tenant)
    assert names(desk.start(10)) == "babaaaaaaa"


def test_one_tenant_is_first_come_first_served_within_a_priority() -> None:
    desk = Desk()
    asked = [desk.add("a", size, priority=priority) for size, priority in ((9, 0), (9000, 0), (5, 3), (7, 0))]
    assert desk.start(4) == [asked[2], asked[0], asked[1], asked[3]]


def test_small_requests_make_a_turn_together() -> None:
    desk = Desk()
    for _ in range(8):
        desk.add("a", QUANTUM // 4)
        desk.add("b", QUANTUM)
    assert names(desk.start(10)) == "baaaabaaaa"


def test_weights_are_shares() -> None:
    desk = Desk()
    for _ in range(12):
        desk.add("a", weight=3)
        desk.add("b")
    assert names(desk.start(8)) == "baaabaaa"


def test_what_is_cached_costs_nothing() -> None:
    desk = Desk()
    for _ in range(4):
        desk.add("a")
        desk.add("b")
    assert names(desk.start(4, cached=QUANTUM - 8)) == "bbbb"


def test_output_is_paid_for_when_it_has_been_drawn() -> None:
    desk = Desk()
    for _ in range(6):
        desk.add("a")
        desk.add("b")
    for one in desk.start(2):
        desk.end(one, output=2 * QUANTUM if one.tenant == "a" else 0)
    assert names(desk.start(5)) == "bbbab"


def test_who_had_to_give_way_pays_once() -> None:
    desk = Desk()
    first = desk.add("a")
    desk.start()
    first.tokens = np.ones(QUANTUM + 5, np.int32)
    desk.end(first)
    desk.line.add(first)
    assert first.charged == QUANTUM + 5 and cost(first) == 1


def test_a_newcomer_is_next() -> None:
    desk = Desk()
    for _ in range(50):
        desk.add("a", 500)
    desk.start(7)
    desk.add("b", 500)
    assert names(desk.start(3))[0] == "b"


def test_who_comes_again_and_again_does_not_pass_for_new() -> None:
    """One at a time or all at once, in the long run a tenant gets the same."""
    desk = Desk()
    for _ in range(200):
        desk.add("a", 500)
    served = ""
    for _ in range(100):
        if not any(one.tenant == "b" for one in desk.line):
            desk.add("b", 500)
        served += names(desk.start())
    assert abs(served.count("a") - served.count("b")) <= 2 * QUANTUM / 500 + 1


def test_idle_time_is_neither_saved_up_nor_held_against_anybody() -> None:
    desk = Desk()
    for _ in range(100):
        desk.add("a")
        desk.start()
    desk.add("b")
    desk.start()
    for _ in range(20):
        desk.add("a")
        desk.add("b")
    served = names(desk.start(12))
    assert abs(served.count("a") - served.count("b")) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_nobody_who_waits_lags_by_more_than_a_quantum_and_a_request(seed: int) -> None:
    rng = random.Random(seed)
    desk = Desk()
    weights = {name: rng.choice((0.5, 1.0, 1.0, 4.0)) for name in "abcde"[: rng.randint(2, 5)]}
    largest = rng.choice((100, 3000, 9000))
    for name, weight in weights.items():
        for _ in range(300):
            desk.add(name, rng.randint(1, largest), weight=weight)
    served: defaultdict[str, float] = defaultdict(float)
    for _ in range(200):
        for one in desk.start(rng.randint(1, 5)):
            served[one.tenant] += len(one.tokens) / weights[one.tenant]
        if {one.tenant for one in desk.line} != weights.keys():
            break
        bound = QUANTUM + largest / min(weights.values())
        assert max(served[name] for name in weights) - min(served[name] for name in weights) <= bound


def test_the_first_in_line_takes_a_slot_of_who_has_too_many() -> None:
    desk = Desk()
    for _ in range(9):
        desk.add("a", 10)
    running = desk.start(4)
    assert desk.line.usurped(lambda: running) is None
    desk.add("b", 10)
    usurped = desk.line.usurped(lambda: running)
    assert usurped is running[-1], "the latest to come"
    assert usurped is not None
    desk.end(usurped)
    desk.line.add(usurped)
    assert names(desk.start()) == "b"
    desk.add("b", 10)
    for _ in range(9):  # two each, and no more
        if (usurped := desk.line.usurped(lambda: desk.running)) is not None:
            desk.end(usurped)
            desk.line.add(usurped)
            desk.start()
    assert sorted(names(desk.running)) == ["a", "a", "b", "b"]


def test_a_crowd_of_one_does_not_delay_another() -> None:
    """All slots are taken and many wait: the other's only request starts with the next plan."""
    world = World(policy="fair", max_num_seqs=4, num_pages=200, max_num_batched_tokens=64)
    for number in range(60):
        world.add([8 + number % 30] * 8, 40, tenant="a")
    for _ in range(5):
        world.step()
    before = len(world.plans)
    other = world.add([9] * 8, 4, tenant="b")
    while not world.output[other]:
        world.step()
    assert len(world.plans) - before <= 2 + world.depth
    world.run()
    world.check_outputs()
    world.check_rest()


@pytest.mark.parametrize(("prompt", "budget"), [(16, 64), (64, 128), (64, 256)])
def test_beside_a_crowd_a_first_token_takes_twice_the_work_at_most(prompt: int, budget: int) -> None:
    """Counted in tokens that are computed from a request's arrival on, the rest of the step that it falls into among them."""
    rng = random.Random(1)
    world = World(policy="fair", max_num_seqs=8, num_pages=600, max_num_batched_tokens=budget, depth=0)

    def ask(tenant: str, output: int) -> int:
        return world.add([rng.randrange(8, 50) for _ in range(prompt)], output, tenant=tenant)

    for _ in range(150):
        ask("crowd", rng.randint(8, 24))
    for _ in range(20):
        world.step()
    took = []
    for _ in range(15):
        before = len(world.plans)
        rest = rng.random() * int(world.plans[-1].counts_R.sum())
        mine = ask("other", 2)
        while not world.output[mine]:
            world.step()
        took.append(rest + sum(int(plan.counts_R.sum()) for plan in world.plans[before:]))
        while mine not in world.finish or rng.random() < 0.8:
            world.step()
    assert any(one.tenant == "crowd" for one in world.scheduler._roster.waiting)
    assert median(took) <= 2 * prompt
