"""Where a model that drafts has stayed behind: what it takes in before it drafts again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.base.plan import Admissions, Admit, Ints, Part, Plan, Propose
from sapwood.base.sampling import SamplingParams
from sapwood.runner.trail import Trail


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


def steady(starts: Sequence[int], owners: Sequence[int], *parts: Part, num_steady: int | None = None) -> Plan:
    """Rows of slots 0, 1, ... with a token each."""
    slots, ones = np.arange(len(starts), dtype=np.int32), np.ones(len(starts), np.int32)
    steady = len(starts) if num_steady is None else num_steady
    return Plan(steady, 1, slots, ints(*starts), ones, ones, np.array(owners, np.int64), number=1, parts=parts)


def admitted(slot: int) -> Admissions:
    tokens = ints(*range(9))
    params = SamplingParams()
    return Admissions((Admit(slot, tokens, 0, 9, 20, 9, 0, (), params),))


def taken(trail: Trail, plan: Plan) -> list[tuple[int, int, int]]:
    """Slot, and the positions from one up to another, of all that is taken in."""
    found = []
    for chunk in trail.missed(plan):
        rows = zip(chunk.slots_R.tolist(), chunk.starts_R.tolist(), chunk.counts_R.tolist(), strict=True)
        found += [(slot, start, start + count) for slot, start, count in rows]
    return found


def test_what_was_missed_is_taken_in_once_in_pieces() -> None:
    trail = Trail(num_slots=2, rewind=2, most=8)
    assert all(trail.leaves(steady([10 + i, 30 + i], [1, 2])) for i in range(5))
    wants = steady([16, 35], [1, 2], Propose(ints(0), ints(3)))
    assert taken(trail, wants) == [(0, 8, 16)] and not trail.leaves(wants)
    assert taken(trail, wants) == []
    both = steady([17, 36], [1, 2], Propose(ints(0, 1), ints(2, 2)))
    assert taken(trail, both) == [(1, 28, 36)]


def test_tokens_that_the_host_forces_are_no_other_request_and_an_admission_is() -> None:
    trail = Trail(num_slots=1, rewind=0, most=100)
    assert trail.leaves(steady([10], [1]))
    assert not trail.leaves(steady([14], [7], num_steady=0)), "forced tokens are fed, by a row that is valid anew"
    assert trail.leaves(steady([15], [7]))
    wants = steady([16], [7], Propose(ints(0), ints(3)))
    assert taken(trail, wants) == [(0, 10, 16)]
    assert trail.leaves(steady([17], [7]))
    assert not trail.leaves(steady([0], [8], admitted(0), num_steady=0))
    assert taken(trail, steady([9], [8], Propose(ints(0), ints(3)))) == []


def test_steps_that_are_timed_leave_nothing_behind() -> None:
    trail = Trail(num_slots=1, rewind=0, most=100)
    assert trail.leaves(steady([10], [0]))
    assert taken(trail, steady([11], [1], Propose(ints(0), ints(1)))) == []
