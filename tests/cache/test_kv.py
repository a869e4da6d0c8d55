"""Single promises of the cache that a state machine only meets by chance."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sapwood.base.errors import ConfigError
from sapwood.base.layout import longest_sequence, split_pages
from tests.sim.world import World, group


def test_a_prefix_is_reused_and_reported() -> None:
    world = World(page_size=4)
    first = world.add(range(10, 30), 2)
    world.run()
    second = world.add([*range(10, 30), 7, 7, 7], 2)
    world.run()
    assert world.cached == {first: 0, second: 20}


def test_the_last_token_is_always_computed() -> None:
    world = World(page_size=4)
    world.add(range(10, 22), 1)
    world.run()
    again = world.add(range(10, 22), 1)
    world.run()
    # Two whole pages, and three quarters of the third by copying it.
    assert world.cached[again] == 11 and world.kv.num_copied == 1


def test_a_partial_page_of_a_finished_sequence_is_copied() -> None:
    world = World(page_size=8)
    first = world.add(range(10, 15), 6)
    world.run()
    history = [*range(10, 15), *world.output[first]]
    second = world.add([*history, 1, 2, 3], 1)
    world.run()
    assert world.cached[second] == len(history) - 1, "the last token of an answer has no KV"
    assert world.kv.num_copied == 1


def test_namespaces_share_nothing() -> None:
    world = World()
    world.add(range(10, 30), 1, namespace="a")
    world.run()
    other = world.add(range(10, 30), 1, namespace="b")
    world.run()
    assert world.cached[other] == 0


def test_without_reuse_nothing_is_shared() -> None:
    world = World(reuse=False)
    world.add(range(10, 30), 1)
    world.run()
    again = world.add(range(10, 30), 1)
    world.run()
    assert world.cached[again] == 0


def test_what_a_failed_request_computed_is_forgotten() -> None:
    world = World(poison=7)
    bad = world.add([*range(10, 30), 7], 4)
    world.run()
    assert world.finish[bad] == "error"
    good = world.add([*range(10, 30), 8], 4)
    world.run()
    assert world.cached[good] == 0 and world.finish[good] == "length"


def test_eviction_is_least_recently_used_and_from_the_leaves() -> None:
    world = World(page_size=4, num_pages=13, max_num_seqs=1, max_model_len=40)
    old, new = [*range(10, 26)], [*range(30, 46)]
    for prompt in (old, new, old):
        world.add(prompt, 1)
        world.run()
    world.add(range(50, 78), 1)  # needs the pages of one of them
    world.run()
    assert world.kv.tree.num_evicted > 0
    peek = [world.kv.peek(world.requests[id]) for id in (1, 2)]
    assert peek[0] > peek[1], "the one used last has kept more"


def test_audit_mends_a_lost_and_a_doubled_page() -> None:
    world = World()
    world.add(range(10, 30), 1)
    world.run()
    pool = world.kv.pools[0]
    lost = pool.free.pop()
    pool.free.append(pool.free[0])
    assert world.kv.audit([]) == 2
    assert lost in pool.free and len(set(pool.free)) == len(pool.free)
    world.check_rest()


def test_pages_outside_the_window_can_go_to_others() -> None:
    """Sequences that together are far longer than the windowed pool run side by side."""
    world = World(windows=(None, 8), num_pages=(200, 22), max_num_seqs=4, max_num_batched_tokens=8, max_model_len=128)
    ids = [world.add([i + 10] * 3, 100) for i in range(4)]
    world.run()
    world.check_outputs()
    assert all(world.finish[id] == "length" for id in ids)
    assert world.scheduler.num_preempted == 0


def test_split_pages_is_even_until_a_window_has_enough() -> None:
    full, narrow = group(None, 16), group(64, 16)
    cost = full.bytes_per_page(2)
    assert split_pages([full, narrow], 100 * cost, page_bytes=[cost] * 2, max_num_seqs=64, step_tokens=512) == [50, 50]
    counts = split_pages([full, narrow], 10_000 * cost, page_bytes=[cost] * 2, max_num_seqs=4, step_tokens=64)
    assert counts[1] < 100 and sum(counts) == 10_000
    assert split_pages([full], 10**9, page_bytes=[cost], max_num_seqs=4, step_tokens=64, max_tokens=160) == [11]


def test_a_window_gives_way_to_one_long_sequence() -> None:
    full, narrow = group(None, 16), group(64, 16)
    cost = full.bytes_per_page(2)
    split = partial(split_pages, [full, narrow], 100 * cost, page_bytes=[cost] * 2, max_num_seqs=64, step_tokens=64)
    for longest in (800, 1200, 1408):  # the last with the pages of one window, one step and their borders
        counts = split(longest=longest)
        assert sum(counts) <= 100 and longest_sequence([full, narrow], counts, step_tokens=64) >= longest
    assert split(longest=1424) == [50, 50], "what does not fit changes nothing"


def test_too_little_memory_says_so() -> None:
    with pytest.raises(ConfigError, match="too little memory"):
        split_pages([group(None, 16)], 2**20, page_bytes=[2**20], max_num_seqs=4, step_tokens=64)


def test_longest_sequence_of_a_window() -> None:
    full, narrow = group(None, 16), group(64, 16)
    assert longest_sequence([full, narrow], [101, 20], step_tokens=64) == 1600
    assert longest_sequence([full, narrow], [101, 9], step_tokens=64) == 128


def test_match_wants_whole_windows() -> None:
    """A cached prefix counts up to where every page that the next query sees is still there."""
    world = World(windows=(None, 6), page_size=2, num_pages=(64, 64))
    first = world.add(range(10, 40), 1)
    world.run()
    request = world.requests[first]
    whole = world.kv.peek(request)
    node = world.kv.tree.match(world.kv.tree.root(""), request.tokens.tobytes(), 100)[-2]
    world.kv.pools[1].give(node.pages[1])
    node.pages[1] = -1
    world.kv.tree.num_present[1] -= 1
    assert world.kv.peek(request) == whole - 2
    assert np.array_equal(request.tokens[:30], np.arange(10, 40))


def test_the_source_of_a_copy_stays_until_the_plan_is_made() -> None:
    world = World(windows=(None, 6), page_size=4)
    world.add(range(10, 20), 1)
    world.run()
    world.add([*range(10, 18), 18, 1, 2], 1)
    request = world.requests[2]
    world.kv.enter(request)
    world.slots.assign(request, (0, request.arrival))
    available = world.kv.num_available(1)
    assert world.kv.install(request, number=world.plans[-1].number + 1) == 9
    assert world.kv.num_available(1) == available - 2, "the copy and its source"
    world.kv.take_changes()
    assert world.kv.num_available(1) == available - 1
