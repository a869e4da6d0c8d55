"""How many drafts are fed: never more than pay, none for long that are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.base.plan import Ints
from sapwood.draft.pace import Adaptive, Costs, Line, Passes


def costs(tokens: list[int], seconds: list[float], **reading: float) -> Costs:
    line = Line(tokens, seconds, 256)
    return Costs(line, line, **reading)


FREE = costs([1, 64], [1.0, 1.0])
"""A step of any size costs the same."""
DEAR = costs([1, 64], [1.0, 64.0])
"""Every token costs as much as the first."""
BENT = costs([1, 8, 64], [1.0, 1.0, 8.0])
STEEP = costs([1, 64], [1.0, 13.6])
"""A token more is a fifth of the first."""


def pace(of: Costs, *, rows: int = 1, most: int = 8, drafters: int = 1) -> Adaptive:
    return Adaptive(rows, drafters, most=most, costs=of)


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


def shares(
    mine: Adaptive, rows: int = 1, ready: int = 8, flying: int = 0, most: int = 1000, lengths: Ints | None = None
) -> list[int]:
    slots = np.arange(rows, dtype=np.int32)
    full = np.full(rows, 1, np.int32)
    return mine.share(slots, full if lengths is None else lengths, 0 * full, ready * full, flying * full, most).tolist()


def taught(mine: Adaptive, right: int, of: int, times: int = 20, slot: int = 0) -> Adaptive:
    for _ in range(times):
        mine.learn(ints(slot), ints(0), ints(of), ints(right), ints(0))
    return mine


def test_costs_are_lines_between_what_was_measured() -> None:
    line = Line([1, 2, 4], [1.5, 1.0, 3.0], 10)
    assert line.of(1, 6).tolist() == pytest.approx([1.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert line.of(9, 12).tolist() == pytest.approx([8.0, 9.0, 9.0, 9.0])
    assert Costs(Line([1], [2.0], 10), line).plain(2) == pytest.approx(1.0), "no more than with drafts"
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


def test_a_step_without_drafts_may_be_another_kind_that_costs_less() -> None:
    """What it takes to have drafts at all must come back too."""
    jump = Costs(Line([1, 64], [1.0, 1.0], 256), Line([1, 2, 64], [1.0, 2.0, 2.0], 256))
    assert shares(pace(jump), ready=1) == [0] and shares(taught(pace(jump), 8, 8)) == [8]
    assert not pace(jump, rows=2).reach(ints(0, 1), ints(3, 3)).any()


def test_rows_that_read_much_feed_less_and_more_where_all_read_it_anyhow() -> None:
    """What a draft reads again is its own cost; what its row reads is paid for by all of its tokens."""
    reads, reading = costs([1, 64], [1.0, 13.6], draft=1e-2), costs([1, 64], [1.0, 13.6], row=1e-2)
    short, long = (shares(pace(reads), ready=40, lengths=ints(length))[0] for length in (1, 20))
    assert 0 < long < short
    assert not pace(reads).reach(ints(0), ints(5000)).any()
    assert shares(pace(reading), ready=40, lengths=ints(400))[0] > short
    near, far = shares(pace(reads, rows=2), rows=2, ready=40, lengths=ints(1, 400))
    assert near > far


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
    mine = taught(pace(costs([1, 9], [1.0, 4.0])), 0, 8, times=30)
    fed = [shares(mine)[0] for _ in range(400)]
    assert fed[0] == 0 and max(fed) > 0


def test_a_pass_costs_by_the_rows_that_it_drafts_for() -> None:
    """Drafts of another drafter cost none of it; a second row of a pass costs what it adds."""
    passes = Passes(1, Line([1, 2, 3], [5.0, 6.0, 8.0], 8))
    drafters, places = ints(1, 0, 1, 1, 1, 1), np.array([0, 0, 0, 1, 1, 0])
    assert passes.seconds(drafters, places).tolist() == [5.0, 5.0, 6.0, 11.0, 12.0, 14.0]
    assert passes.seconds(ints(0, 0), np.array([0, 1])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("seconds", "fed"), [(0.001, 8), (0.2, 2), (2.0, 0)])
def test_a_model_drafts_while_its_passes_pay(seconds: float, fed: int) -> None:
    """Of 0.6 + 0.36 + ... tokens each pass costs the same."""
    passes = Passes(0, Line([1, 64], [seconds, seconds], 64))
    found = shares(Adaptive(1, 1, most=8, costs=FREE, passes=passes))
    assert found == [fed]
    many = Adaptive(16, 1, most=8, costs=FREE, passes=passes)
    assert shares(many, rows=16)[0] >= fed, "rows share a pass"
