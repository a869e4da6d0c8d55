from __future__ import annotations

import random
from itertools import pairwise

import msgspec

from sapwood.base.histogram import Histogram


def test_against_counting_by_hand() -> None:
    bounds = (1.0, 2.0, 5.0)
    one, values = (
        Histogram.over(bounds),
        [random.Random(0).choice((0.5, 1.0, 1.5, 2.0, 4.9, 5.0, 5.1)) for _ in range(50)],
    )
    for value in values:
        one.add(value, 2)
    edges = (float("-inf"), *bounds, float("inf"))
    counted = [2 * sum(low < value <= high for value in values) for low, high in pairwise(edges)]
    other = Histogram.over(bounds)
    other.add_all(values * 2)
    assert one.counts == other.counts == counted and abs(one.total - other.total) < 1e-9
    other.add_all([])
    assert sum(other.counts) == 100 and abs(one.total - 2 * sum(values)) < 1e-9


def test_a_copy_stays_as_it_is_and_all_of_it_travels() -> None:
    one = Histogram.over((1.0,))
    one.add(0.5)
    copy = one.copy()
    one.add(3.0)
    assert copy.counts == [1, 0] and one.counts == [1, 1]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Histogram) == one
