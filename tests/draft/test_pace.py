"""How many drafts are fed: never more than pay, none for long that are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.base.plan import Ints
from sapwood.draft.pace import Adaptive, Costs

FREE = Costs([1, 64], [1.0, 1.0], 256)
"""A step of any size costs the same."""
DEAR = Costs([1, 64], [1.0, 64.0], 256)
"""Every token costs as much as the first."""
BENT = Costs([1, 8, 64], [1.0, 1.0, 8.0], 256)
STEEP = Costs([1, 64], [1.0, 13.6], 256)
"""A token more is a fifth of the first."""


def pace(costs: Costs, *, rows: int = 1, most: int = 8, drafters: int = 1) -> Adaptive:
    return Adaptive(rows, drafters, most=most, costs=costs)


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


def shares(mine: Adaptive, rows: int = 1, ready: int = 8, flying: int = 0, most: int = 1000) -> list[int]:
    slots = np.arange(rows, dtype=np.int32)
    full = np.full(rows, 1, np.int32)
    return mine.share(slots, 0 * full, ready * full, flying * full, most).tolist()


def taught(mine: Adaptive, right: int, of: int, times: int = 20, slot: int = 0) -> Adaptive:
    for _ in range(times):
        mine.learn(ints(slot), ints(0), ints(of), ints(right), ints(0))
    return mine


def test_costs_are_lines_between_what_was_measured() -> None:
    costs = Costs([1, 2, 4], [1.5, 1.0, 3.0], 10)
    assert costs.of(1, 6).tolist() == pytest.approx([1.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert costs.of(9, 12).tolist() == pytest.approx([8.0, 9.0, 9.0, 9.0])
    assert (FREE.bend(), DEAR.bend(), BENT.bend()) == (244, 1, 8)


def test_what_costs_nothing_is_fed_and_what_does_not_pay_is_not() -> None:
    assert shares(pace(FREE)) == [8] and shares(pace(DEAR)) == [0]
    assert 0 < shares(pace(BENT))[0] <= 8


def test_a_row_that_is_right_more_often_feeds_more() -> None:
    good, bad = taught(pace(STEEP), 8, 8), taught(pace(STEEP), 0, 8, times=2)
    assert shares(good, ready=40)[0] > shares(pace(STEEP), ready=40)[0] > shares(bad, ready=40)[0]
    both = taught(taught(pace(STEEP, rows=2), 8, 8), 1, 8, slot=1)
    most, least = shares(both, rows=2)
    assert most > least


def test_many_rows_feed_less_each() -> None:
    few, many = shares(pace(BENT), rows=1), shares(pace(BENT, rows=20), rows=20)
    assert few[0] > 0 and sum(many) == 0
    mine = pace(BENT)
    mine.beside(60)
    assert shares(mine) == [0], "prompts beside them count too"


def test_what_presumes_much_is_worth_little() -> None:
    assert shares(pace(STEEP), flying=6)[0] < shares(pace(STEEP))[0]


def test_no_more_than_there_is_room_for() -> None:
    assert sum(shares(pace(FREE, rows=3), rows=3, most=5)) == 5
    assert sum(shares(pace(FREE, rows=3), rows=3, most=0)) == 0
    assert shares(pace(FREE, rows=3), rows=3, ready=0) == [0, 0, 0]


def test_drafters_are_told_apart() -> None:
    mine = taught(pace(FREE, drafters=2), 0, 4)
    reach = mine.reach(ints(0), ints(3))[0]
    assert reach[0] == 0 < reach[1]


def test_a_row_whose_drafts_are_wrong_rests_for_longer_and_longer() -> None:
    mine, drafted, known = pace(FREE), list[int](), 0
    while known < 2000:
        if mine.reach(ints(0), ints(known))[0, 0]:
            drafted.append(known)
            mine.learn(ints(0), ints(0), ints(1), ints(0), ints(known))
        known += 1
    pauses = np.diff(drafted)
    assert pauses[0] == 1 and (np.diff(pauses) >= 0).all() and pauses[-1] == 256
    assert len(drafted) < 20


def test_one_that_is_right_ends_the_rest_and_a_new_request_has_none() -> None:
    mine = taught(pace(FREE), 0, 1)
    assert not mine.reach(ints(0), ints(5)).any()
    mine.begin(0)
    assert mine.reach(ints(0), ints(5)).all()
    taught(mine, 0, 1, times=5)
    taught(mine, 1, 1, times=1)
    assert mine.reach(ints(0), ints(5)).all()


def test_nobody_is_asked_where_not_even_the_surest_draft_pays() -> None:
    assert not pace(DEAR).reach(ints(0), ints(3)).any()
    assert not pace(BENT, rows=40).reach(np.arange(40, dtype=np.int32), np.zeros(40, np.int32)).any()


def test_what_was_given_up_is_tried_again() -> None:
    """Nothing is learnt of drafts that are not fed, so what is known of them fades."""
    mine = taught(pace(Costs([1, 9], [1.0, 4.0], 64)), 0, 8, times=30)
    fed = [shares(mine)[0] for _ in range(400)]
    assert fed[0] == 0 and max(fed) > 0
