"""A cursor in a prediction: where it follows, where it is lost, and where it goes on."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.base.cursor import Cursor, came_true
from sapwood.base.plan import Ints


def ints(*tokens: int) -> Ints:
    return np.array(tokens, np.int32)


PREDICTION = range(100, 140)


@pytest.mark.parametrize(
    ("output", "ahead"),
    [
        ([], [100, 101, 102]),
        ([100, 101], [102, 103, 104]),
        ([100, 101, 7], []),  # something else was said
        ([100, 101, 7, 103], []),  # one token in common is too little
        ([100, 101, 7, 103, 104], [105, 106, 107]),  # a word was changed
        ([100, 101, 7, 8, 9, 102, 103], [104, 105, 106]),  # words were put in
        ([100, 101, 110, 111], [112, 113, 114]),  # words were left out
        ([100, 101, 110, 111, 100, 101], [102, 103, 104]),  # it goes back
        ([7, 100, 101], [102, 103, 104]),
        ([*PREDICTION], []),
        ([*PREDICTION, 120, 121], [122, 123, 124]),
    ],
)
def test_a_cursor_follows_and_finds_its_place_again(output: list[int], ahead: list[int]) -> None:
    for step in (1, 2, 5):
        cursor = Cursor(ints(*PREDICTION))
        for end in range(0, len(output), step):
            cursor.ahead(ints(*output[:end]), 3)
        assert cursor.ahead(ints(*output), 3).tolist() == ahead


def test_a_cursor_sooner_goes_ahead_than_back_and_no_further_than_it_has_to() -> None:
    again = [1, 2, 3, 50, 1, 2, 4, 51, 1, 2, 5]
    cursor = Cursor(ints(*again))
    cursor.ahead(ints(1, 2, 3, 50), 1)
    cursor.ahead(ints(1, 2, 3, 50, 9), 1)
    assert cursor.ahead(ints(1, 2, 3, 50, 9, 1, 2), 1).tolist() == [4]


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ([], 0),
        ([*PREDICTION], 40),
        ([*PREDICTION, 7, 8], 40),
        ([*PREDICTION[:10]], 10),
        ([100, 101, 7, 103, 104, 105, 106], 2 + 2),
        ([7, 8, 9], 0),
        ([7, 100, 101, 102], 1),
        ([*PREDICTION, *PREDICTION, *PREDICTION], 40),
        ([100, 7, 110, 111, 112, 8, 9, 130, 131, 132], 1 + 1 + 1),
    ],
)
def test_what_came_true_is_what_the_cursor_knew(output: list[int], right: int) -> None:
    assert came_true(ints(*PREDICTION), ints(*output)) == right
    assert came_true(ints(), ints(*output)) == 0
