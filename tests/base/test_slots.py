"""The host's arrays of running requests: who has a slot, which tokens stop whom, who counts least."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots


def request(id: int, tokens: Sequence[int] = (1, 2, 3), **options: object) -> Request:
    return Request(id, np.array(tokens, np.int32), SamplingParams(), limit=len(tokens) + 8, **options)  # type: ignore[arg-type]


def assign(slots: Slots, one: Request, rank: tuple[int, int] = (0, 0)) -> int:
    return slots.assign(one, rank)


def stopped(slots: Slots, tokens: dict[int, int]) -> list[int]:
    """The slots whose token stops them."""
    found = slots.stopped(np.array(list(tokens), np.int32), np.array(list(tokens.values()), np.int32))
    return [slot for slot, stop in zip(tokens, found.tolist(), strict=True) if stop]


def test_a_slot_knows_its_requests_tokens_and_bounds() -> None:
    slots = Slots(2, 16)
    one = request(7, [4, 5, 6], stop_ids=(9,))
    slot = assign(slots, one)
    assert one.running and one.slot == slot and slots.of(slot) is one
    assert slots.history[slot, :3].tolist() == [4, 5, 6]
    assert (slots.known[slot], slots.fed[slot], slots.flying[slot], slots.limit[slot]) == (3, 0, 0, 11)
    slots.fed[slot] = 2
    assert slots.planned(slot) == np.array([4, 5], np.int32).tobytes(), "known and fed"
    slots.fed[slot] = 9
    assert slots.planned(slot) == np.array([4, 5, 6], np.int32).tobytes()


def test_a_slot_has_one_tenant_within_a_plan() -> None:
    slots = Slots(1, 8)
    one = request(1)
    slot = assign(slots, one)
    owner = int(slots.owner[slot])
    slots.release(one)
    assert not one.running and slots.owner[slot] == 0 and not slots.free
    assert slots.num_running == 0 and slots.running() == []
    slots.recycle()
    assert assign(slots, request(2)) == slot
    assert slots.owner[slot] > owner, "what was on its way to the first finds nobody"


def test_renewing_voids_what_is_in_flight() -> None:
    slots = Slots(2, 8)
    a, b = assign(slots, request(1)), assign(slots, request(2))
    before = slots.owner[[a, b]].copy()
    slots.renew(a)
    assert slots.owner[a] > before.max() and slots.owner[b] == before[1]


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 40])
def test_each_of_a_requests_stop_tokens_stops_it_and_nobody_else(count: int) -> None:
    slots = Slots(3, 8)
    stops = tuple(range(100, 100 + count))
    a, b, c = (assign(slots, request(id, stop_ids=ids)) for id, ids in enumerate([stops, (7,), ()]))
    for token in stops:
        assert stopped(slots, {a: token, b: token, c: token}) == [a]
    assert stopped(slots, {a: 7, b: 7, c: 7}) == [b]
    assert stopped(slots, {c: 100, b: 99, a: 99}) == []


def test_padding_of_stop_tokens_stops_nothing() -> None:
    """A token that could not be drawn is -1, as is a place where no stop token stands."""
    slots = Slots(2, 8)
    a, b = assign(slots, request(1, stop_ids=(5, 6))), assign(slots, request(2))
    assert stopped(slots, {a: 5, b: 5}) == [a]
    slots.release(slots.of(a))
    slots.recycle()
    a = assign(slots, request(3, stop_ids=(8,)))
    assert stopped(slots, {a: 5}) == stopped(slots, {a: 6}) == [], "the last tenant's are gone"
    assert stopped(slots, {a: 8}) == [a]


def test_stop_tokens_of_many_tenants_in_any_order() -> None:
    """Against a plain dict, with few and many of them, as tenants come and go."""
    chance, slots = random.Random(3), Slots(6, 8)
    stops: dict[int, frozenset[int]] = {}
    for id in range(400):
        if slots.free and chance.random() < 0.6:
            ids = tuple(chance.sample(range(30), chance.choice([0, 1, 1, 2, 3, 4, 5, 9])))
            stops[assign(slots, request(id, stop_ids=ids))] = frozenset(ids)
        elif stops:
            slot = chance.choice(list(stops))
            slots.release(slots.of(slot))
            slots.recycle()
            del stops[slot]
        drawn = {slot: chance.randrange(30) for slot in chance.sample(list(stops), chance.randint(0, len(stops)))}
        assert stopped(slots, drawn) == [slot for slot, token in drawn.items() if token in stops[slot]]


def test_the_worst_has_the_highest_rank_and_came_last() -> None:
    slots = Slots(4, 8)
    ranks = [(0, 5), (1, 2), (1, 9), (0, 20)]
    found = [assign(slots, request(id), rank) for id, rank in enumerate(ranks)]
    assert slots.worst(np.array(found)) == found[2]
    assert slots.worst(np.array([found[0], found[3]])) == found[3]
    assert slots.worst(np.array([found[1]])) == found[1]
