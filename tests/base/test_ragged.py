"""Where rows begin and whose an element is, against lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sapwood.base.ragged import firsts, rows_of, spread


@given(st.lists(st.integers(0, 5), max_size=12))
def test_as_lists_have_it(counts: list[int]) -> None:
    counts_R = np.array(counts, np.int32)
    whose = [row for row, count in enumerate(counts) for _ in range(count)]
    places = [place for count in counts for place in range(count)]
    assert firsts(counts_R).tolist() == [sum(counts[:row]) for row in range(len(counts))]
    assert rows_of(counts_R).tolist() == whose
    rows_N, within_N = spread(counts_R)
    assert (rows_N.tolist(), within_N.tolist()) == (whose, places)


def test_sums_beyond_32_bits() -> None:
    assert firsts(np.full(3, 2**31 - 1, np.int32)).tolist() == [0, 2**31 - 1, 2 * (2**31 - 1)]
