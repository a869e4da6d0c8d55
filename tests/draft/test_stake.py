"""A drafter as a stake: how far it proposes, for whom, and when there is not room for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from sapwood.base.plan import Drafts, Ints, Plan, Propose, Rows
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.draft import Drafter, DraftStake, OnDevice
from tests.sim.world import World, expected


class Counting(Drafter):
    """Proposes what comes after the last token, and notes what it was asked."""

    def __init__(self, says: Callable[[Ints, int], Sequence[int]] | None = None) -> None:
        self.says = says or (lambda tokens, count: [int(tokens[-1]) + i for i in range(1, count + 1)])
        self.asked: list[tuple[int, int]] = []  # known tokens, and how many may follow

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int]:
        self.asked.append((len(tokens), count))
        return self.says(tokens, count)


PLAIN = Rows(0, 0, *(np.zeros(0, np.int32) for _ in range(4)), np.zeros(0, np.int64))


def counting(
    slots: Slots, *, most: int, says: Callable[[Ints, int], Sequence[int]] | None = None
) -> tuple[DraftStake, list[tuple[int, int]]]:
    """A stake with such a drafter, and what that was asked."""
    drafter = Counting(says)
    return DraftStake(slots, (drafter,), most=most), drafter.asked


def running(*lengths: int, max_len: int = 64) -> tuple[Slots, Ints]:
    slots = Slots(len(lengths), max_len)
    for id, length in enumerate(lengths):
        one = Request(id, np.arange(length, dtype=np.int32), SamplingParams(), limit=max_len)
        slot = slots.assign(one, (0, id))
        slots.fed[slot] = length - 1
    return slots, np.array([one.slot for one in slots.running()], np.int32)


def proposed(drafter: DraftStake) -> dict[int, list[int]]:
    """What goes down with the plan being made."""
    parts = [part for part in drafter.parts(PLAIN) if isinstance(part, Drafts)]
    return {one.slot: one.tokens.tolist() for part in parts for one in part.stretches}


def test_with_nothing_in_flight_drafts_follow_the_last_known_token() -> None:
    slots, steady = running(4, 9)
    drafter, _ = counting(slots, most=3)
    counts = drafter.drafts(steady, slots.known[steady], 100)
    assert counts is not None and counts.tolist() == [3, 3]
    told = proposed(drafter)
    for slot, length in zip(steady.tolist(), [4, 9] if steady[0] < steady[1] else [9, 4], strict=True):
        length = int(slots.known[slot])
        assert told[slot] == [length, length + 1, length + 2]
        assert slots.history[slot, length : length + 3].tolist() == told[slot], "where the step will read them"
    assert drafter.parts(PLAIN) == (), "told once"


def test_nobody_is_asked_while_a_step_is_in_flight() -> None:
    slots, steady = running(4)
    slots.flying[steady] = 1
    drafter, asked = counting(slots, most=3)
    assert drafter.drafts(steady, slots.known[steady] + 1, 100) is None and not asked


def test_behind_a_step_in_flight_a_proposal_reaches_further() -> None:
    """The plan after next may then still have drafts of it: over what is in flight, and as many behind."""
    slots, steady = running(6)
    slot = int(steady[0])
    slots.flying[slot] = 2
    drafter, asked = counting(slots, most=4)
    plan = Plan(
        1, 1, steady, slots.fed[steady], np.ones(1, np.int32), np.ones(1, np.int32), slots.owner[steady], number=1
    )
    late = drafter.fill(plan, np.ones(1, np.bool_))
    assert isinstance(late, Drafts) and asked == [(6, 4 + 2)]
    counts = drafter.drafts(steady, slots.known[steady] + 2, 100)
    assert counts is not None and counts.tolist() == [4]
    counts = drafter.drafts(steady, slots.known[steady] + 5, 100)
    assert counts is not None and counts.tolist() == [1], "what is left of it"
    assert drafter.drafts(steady, slots.known[steady] + 6, 100) is None
    assert drafter.fill(plan, np.ones(1, np.bool_)) is None, "nothing has landed since"


def test_a_dead_row_is_not_asked_for() -> None:
    slots, steady = running(6, 6)
    slots.flying[steady] = 1
    drafter, asked = counting(slots, most=2)
    ones = np.ones(2, np.int32)
    plan = Plan(2, 1, steady, slots.fed[steady], ones, ones, slots.owner[steady], number=1)
    drafter.fill(plan, np.array([False, True]))
    assert len(asked) == 1


def test_a_new_tenants_slot_has_nothing_of_the_last_ones() -> None:
    slots, steady = running(6)
    drafter, _ = counting(slots, most=4)
    assert drafter.drafts(steady, slots.known[steady], 100) is not None
    slots.renew(int(steady[0]))
    slots.flying[steady] = 1
    assert drafter.drafts(steady, slots.known[steady], 100) is None


def test_first_come_first_served_where_there_is_not_room_for_all() -> None:
    slots, steady = running(4, 4, 4)
    counts = counting(slots, most=4)[0].drafts(steady, slots.known[steady], 6)
    assert counts is not None and counts.tolist() == [4, 2, 0]
    assert counting(slots, most=4)[0].drafts(steady, slots.known[steady], 0) is None


def test_proposals_stay_within_the_context_and_within_what_was_asked() -> None:
    slots, steady = running(62, max_len=64)
    drafter, _ = counting(slots, most=2, says=lambda tokens, count: range(50))
    drafter.drafts(steady, slots.known[steady], 100)
    assert proposed(drafter)[int(steady[0])] == [0, 1]
    drafter, _ = counting(slots, most=30, says=lambda tokens, count: range(50))
    drafter.drafts(steady, slots.known[steady], 100)
    (tokens,) = proposed(drafter).values()
    assert tokens == list(range(slots.history.shape[1] - 62))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("most", [1, 4])
def test_right_drafts_save_steps_and_wrong_ones_cost_none(depth: int, most: int) -> None:
    prompt = list(range(10, 18))
    alone = expected(prompt, len(prompt) + 24, (), 50)

    def steps(says: Callable[[Ints, int], Sequence[int]] | None) -> int:
        made = World(
            max_model_len=64,
            depth=depth,
            max_num_batched_tokens=16,
            stakes=lambda slots: () if says is None else (counting(slots, most=most, says=says)[0],),
        )
        made.add(prompt, 24)
        made.run()
        assert made.output[1] == alone
        return len(made.plans)

    plain = steps(None)
    right = steps(lambda tokens, count: alone[len(tokens) - len(prompt) :][:count])
    assert right < plain if most == 1 else right <= plain // 2 + depth
    assert steps(lambda tokens, count: [49] * count) <= plain + depth


def test_each_of_two_counts_its_own_drafts_only() -> None:
    prompt = list(range(10, 18))
    alone = expected(prompt, len(prompt) + 24, (), 50)
    made: list[DraftStake] = []

    def stakes(slots: Slots) -> Sequence[DraftStake]:
        knows = lambda tokens, count: alone[len(tokens) - len(prompt) :][:count] if len(tokens) % 2 else ()  # noqa: E731
        lies = lambda tokens, count: [49] * count  # noqa: E731
        made.extend(counting(slots, most=2, says=says)[0] for says in (knows, lies))
        return made

    world = World(max_model_len=64, depth=0, max_num_batched_tokens=16, stakes=stakes)
    world.add(prompt, 24)
    world.run()
    assert world.output[1] == alone
    (right, accepted), (wrong, none) = (one.gauges()[0].values() for one in made)
    assert right == accepted > 0 and wrong > 0 and none <= sum(token == 49 for token in alone)


def told(rows: Rows, stake: DraftStake) -> dict[int, int]:
    """How many drafts the device is to propose in each slot."""
    found = [part for part in stake.parts(rows) if isinstance(part, Propose)]
    return {
        slot: count for part in found for slot, count in zip(part.slots_P.tolist(), part.counts_P.tolist(), strict=True)
    }


def fed(steady: Ints, drafts: Sequence[int]) -> Rows:
    """Steady rows that feed so many drafts."""
    counts = np.array(drafts, np.int32) + 1
    return Rows(len(steady), 1, steady, 0 * counts, counts, counts, np.ones(len(steady), np.int64))


def test_the_device_drafts_where_nobody_else_has_an_idea_and_behind_steps_in_flight() -> None:
    slots, steady = running(4, 9, 6)
    host = Counting(lambda tokens, count: [7] * count if len(tokens) == 9 else [])
    stake = DraftStake(slots, (host, OnDevice()), most=3)
    for slot in steady.tolist():
        stake.seat(slots.of(slot), 1)
    known = slots.known[steady].tolist()
    slots.flying[steady[known.index(6)]] = 2
    counts = stake.drafts(steady, slots.known[steady], 100)
    assert counts is not None and counts.tolist() == [3, 3, 3]
    rows = fed(steady, [2, 3, 3])  # one of them near its end, say
    wanted = {int(slot): drafts for slot, drafts, length in zip(steady, [2, 3, 3], known, strict=True) if length != 9}
    assert told(rows, stake) == wanted
    assert told(fed(steady, [0, 0, 0]), stake) == {}, "told once"


def test_the_device_drafts_first_if_it_is_preferred_and_tells_what_it_drafts_for_the_restricted() -> None:
    slots, steady = running(4, 9)
    restricted = slots.of(int(steady[0]))
    restricted.params = SamplingParams(allowed_token_ids=(1, 2))
    drafter = Counting()
    stake = DraftStake(slots, (OnDevice(), drafter), most=3)
    for slot in steady.tolist():
        stake.seat(slots.of(slot), 1)
    assert stake.drafts(steady, slots.known[steady], 100) is not None
    rows = fed(steady, [3, 2])
    (propose,) = stake.parts(rows)
    assert isinstance(propose, Propose) and propose.told and propose.counts_P.tolist() == [3, 2]
    assert not drafter.asked
    plan = Plan.of(rows, number=1, parts=(propose,), late=True)
    stake.hear(plan, np.array([True, False]), np.array([5, 6, 7, 8, 9], np.int32))
    first, second = steady.tolist()
    assert slots.history[first, slots.known[first] :][:3].tolist() == [5, 6, 7]
    assert slots.history[second, slots.known[second] :][:2].tolist() == [0, 0], "its slot is another's by now"
    assert stake.drafts(steady, slots.known[steady], 100) is not None
    (propose,) = stake.parts(fed(steady, [0, 2]))
    assert isinstance(propose, Propose) and not propose.told
