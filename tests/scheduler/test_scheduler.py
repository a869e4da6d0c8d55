"""What the scheduler promises: budget, order, sharing inside a step, room for decode, preemption, ageing."""

from __future__ import annotations

import pytest

from sapwood.base.errors import ConfigError
from sapwood.base.sampling import SamplingParams
from sapwood.scheduler.waiting import PATIENCE
from tests.sim.world import World


def fed(world: World) -> int:
    return world.device.num_fed


def test_prompts_and_decodes_mix_under_one_budget() -> None:
    world = World(max_num_batched_tokens=8)
    world.add(range(10, 14), 20)
    world.step()
    world.add(range(20, 50), 4)
    world.step()
    plan = world.plans[-1]
    assert plan.counts_R.tolist() == [1, 7] and plan.heads_R.tolist() == [1, 0]


def test_a_long_prompt_never_stalls_running_answers() -> None:
    world = World(max_num_batched_tokens=16, chunked_prefill_size=4, max_model_len=128)
    world.add(range(10, 14), 30)
    world.step()
    world.add([11] * 60, 4)
    while 1 not in world.finish:
        world.step()
        plan = world.plans[-1]
        assert plan.counts_R[plan.num_steady :].sum() <= 4
    assert len(world.plans) <= 33, "the running answer advanced in every step"


def test_requests_with_one_new_prefix_compute_it_once() -> None:
    for budget in (16, 40, 400):
        world = World(max_num_seqs=8, max_num_batched_tokens=budget, num_pages=200, page_size=4)
        prefix = [*range(100, 160)]
        for i in range(8):
            world.add([*prefix, i, i, i], 1)
        world.run()
        assert fed(world) == 60 + 8 * 3
        world.check_outputs()


def test_n_outputs_share_the_prompts_pages() -> None:
    # In one step all but the page with the last token is shared; in later steps that page is copied, too.
    for budget, own in ((64, 4), (16, 1)):
        world = World(page_size=4, num_pages=64, max_num_batched_tokens=budget)
        for _ in range(4):
            world.add(range(10, 26), 1)
        world.run()
        assert fed(world) == 16 + 3 * own


def test_a_running_prompt_follows_what_another_computes() -> None:
    """Two long prompts that become equal work only after both have started share the rest."""
    world = World(max_num_batched_tokens=8, max_num_seqs=2, page_size=4, num_pages=100, policy="priority")
    stem = [*range(10, 42)]
    slow = world.add([*stem, 1], 1)
    world.step()
    world.step()
    fast = world.add([*stem, 2], 1, priority=9)
    world.run()
    world.check_outputs()
    assert fed(world) == 33 + 1
    assert world.cached[slow] == 0 and world.cached[fast] > 0


def test_memory_pressure_preempts_and_loses_nothing() -> None:
    world = World(num_pages=64, max_num_seqs=4, max_model_len=128)
    ids = [world.add([10 + i] * 5, 110) for i in range(4)]
    world.run()
    assert world.scheduler.num_preempted > 0
    assert all(len(world.output[id]) == 110 for id in ids)
    world.check_outputs()
    world.check_rest()


def test_the_newest_is_preempted_and_the_oldest_is_not() -> None:
    world = World(num_pages=64, max_num_seqs=3, max_model_len=128)
    ids = [world.add([10 + i] * 4, 110) for i in range(3)]
    order: list[int] = []
    while world.step():
        order += [id for id in ids if id in world.finish and id not in order]
    assert world.scheduler.num_preempted > 0 and order == ids


def test_a_start_waits_for_memory_behind_running_requests() -> None:
    world = World(num_pages=12, max_num_seqs=4, max_model_len=44)
    world.add([10] * 20, 8)
    world.step()
    world.add([11] * 30, 2)
    world.step()
    assert world.scheduler.num_running == 1 and world.scheduler.num_waiting == 1
    world.run()
    world.check_outputs()
    assert world.scheduler.num_preempted == 0


def test_priority_goes_first_but_nobody_starves() -> None:
    world = World(policy="priority", max_num_seqs=1, num_pages=64)
    world.add([10], 2)
    low = world.add([11, 12], 1, priority=-1)
    started: list[int] = []
    for _ in range(3 * PATIENCE):
        world.add([13, 14], 1, priority=1)
        world.step()
        started = [*world.cached]
        if low in started:
            break
    assert low in started and len(started) > PATIENCE // 2


def test_longest_prefix_first() -> None:
    world = World(policy="lpm", max_num_seqs=1, num_pages=64)
    world.add(range(10, 26), 1)
    world.run()
    cold = world.add(range(60, 70), 1)
    warm = world.add([*range(10, 26), 5], 1)
    world.run()
    assert [*world.cached][-2:] == [warm, cold]


def test_abort_at_any_moment_gives_everything_back() -> None:
    for moment in range(12):
        world = World(num_pages=32, max_num_batched_tokens=8, depth=2)
        doomed = world.add(range(10, 30), 10)
        other = world.add(range(40, 45), 6)
        for _ in range(moment):
            world.step()
        if doomed not in world.finish:
            world.abort(doomed)
            assert world.finish[doomed] == "abort"
        world.abort(doomed)
        world.run()
        assert world.finish[other] == "length"
        world.check_outputs()
        world.check_rest()


def test_stop_tokens_wait_for_the_least_length() -> None:
    free = World(vocab_size=6)
    id = free.add([3, 4], 40, stop_ids=(0, 1, 2))
    free.run()
    assert free.finish[id] == "stop" and free.output[id][-1] in (0, 1, 2)
    least = len(free.output[id])
    held = World(vocab_size=6)
    id = held.add([3, 4], 40, stop_ids=(0, 1, 2), params=SamplingParams(min_tokens=least))
    held.run()
    assert len(held.output[id]) > least


def test_many_stop_ids() -> None:
    world = World(vocab_size=50)
    world.add([3, 4], 30, stop_ids=(49,))
    id = world.add([3, 4], 30, stop_ids=tuple(range(20)))
    world.run()
    world.check_outputs()
    assert world.finish[id] == "stop"


def test_steady_rows_keep_their_version() -> None:
    world = World(max_num_seqs=3)
    for i in range(3):
        world.add([10 + i] * 3, 30)
    for _ in range(20):
        world.step()
    assert world.plans[-1].version == world.plans[-5].version and world.plans[-1].plain


def test_prompt_logprobs_compute_the_whole_prompt() -> None:
    world = World(max_num_batched_tokens=8)
    world.add(range(10, 30), 1)
    world.run()
    before = fed(world)
    scored = world.add(range(10, 30), 3, params=SamplingParams(prompt_logprobs=0))
    world.run()
    assert world.cached[scored] == 0 and fed(world) == before + 20 + 2
    assert [one.token for one in world.requests[scored].prompt_logprobs] == [*range(11, 30)]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--schedule-policy.*'random'.*fcfs, priority, lpm or fair"):
        World(policy="random")
