"""What each drafter proposes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.cache import KVCache, Paths
from sapwood.draft import Lookup, Predictions, Tree
from tests import kv


def ints(*tokens: int) -> Ints:
    return np.array(tokens, np.int32)


def request(tokens: Sequence[int], *, id: int = 0, namespace: str = "", prediction: Sequence[int] = ()) -> Request:
    params = SamplingParams(prediction=tuple(prediction))
    return Request(id, ints(*tokens), params, limit=1000, namespace=namespace, arrival=id)


# -- lookup -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9, 1]),
        ([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], [5, 9, 1, 2]),  # the last one of several
        ([7, 1, 2, 3, 4, 9, 8, 1, 2, 3, 5, 9, 7, 1, 2, 3], [4, 9, 8, 1]),  # but sooner the one with more in common
        ([1, 2, 3, 4, 2, 3], []),  # too little in common
        ([5, 1, 2, 1, 2, 1], [2, 1, 2, 1]),  # what repeats itself goes on so
        ([1], []),
    ],
)
def test_lookup_goes_on_as_behind_the_last_place_that_is_most_like_the_end(text: list[int], said: list[int]) -> None:
    for first in range(1, len(text) + 1):  # whether it is asked for each token or for some at once
        drafter, mine = Lookup(3), request(text)
        drafter.propose(mine, ints(*text[:first]), 4)
        assert list(drafter.propose(mine, ints(*text), 4)) == said


def test_lookup_keeps_requests_apart_and_forgets_those_that_leave() -> None:
    drafter, text = Lookup(2), [1, 2, 3, 1, 2]
    one, other = request(text, id=1), request([1, 2], id=2)
    assert list(drafter.propose(one, ints(*text), 1)) == [3]
    assert list(drafter.propose(other, ints(1, 2), 1)) == []
    drafter.leave(one)
    drafter.leave(one)
    assert list(drafter.propose(one, ints(9, 8, 7, 9, 8), 1)) == [7]


# -- predictions --------------------------------------------------------------------------------------------------

PREDICTION = range(100, 140)


def test_predictions_are_of_outputs_and_of_those_who_bring_one() -> None:
    drafter = Predictions()
    mine = request([100, 101], prediction=PREDICTION)
    assert list(drafter.propose(mine, ints(100, 101), 2)) == [100, 101]
    assert list(drafter.propose(mine, ints(100, 101, 100), 2)) == [101, 102]
    assert list(drafter.propose(request([100, 101], id=1), ints(100, 101, 100), 2)) == []
    drafter.leave(mine)
    assert list(drafter.propose(mine, ints(100, 101, 100, 101), 2)) == [102, 103]


# -- the tree -----------------------------------------------------------------------------------------------------


class Cache:
    """A cache in which texts can be remembered, and one that asks."""

    def __init__(self, num_pages: int = 64) -> None:
        self.kv = KVCache([kv.group(page_size=16)], [num_pages], anchors=True)
        self.paths = Paths(self.kv.tree)
        self._number = 0

    def run(self, tokens: Sequence[int], namespace: str = "") -> Request:
        """A request that has got so far."""
        self._number += 1
        made = request(tokens, id=self._number, namespace=namespace)
        self.kv.enter(made)
        made.slot = self._number % 4
        self.kv.install(made, number=self._number)
        assert self.kv.reserve(made, len(tokens))
        return made

    def remember(self, tokens: Sequence[int], namespace: str = "") -> None:
        self.kv.leave(self.run(tokens, namespace), ints(*tokens).tobytes(), number=self._number)

    def said(self, tokens: Sequence[int], count: int = 5, namespace: str = "") -> list[int]:
        mine = self.run(tokens[:-1], namespace)
        found = list(Tree(self.paths.find).propose(mine, ints(*tokens), count))
        self.kv.leave(mine, b"", number=self._number)
        return found


TEXT = list(range(1000, 1100))


@pytest.mark.parametrize("length", [3, 15, 16, 17, 40, 98])
def test_a_text_that_begins_alike_goes_on_alike(length: int) -> None:
    cache = Cache()
    cache.remember(TEXT)
    assert cache.said(TEXT[:length]) == TEXT[length : length + 5]
    assert cache.said(TEXT[:length], namespace="another") == []
    assert cache.said([*TEXT[:length], 7]) == []


def test_a_text_that_was_moved_is_found_at_the_next_page() -> None:
    cache = Cache()
    cache.remember(TEXT)
    moved = [5, 6, 7, *TEXT]
    assert cache.said(moved[: 3 + 32 + 8], 20) == TEXT[40:60]
    assert cache.said(moved[: 3 + 32 + 8], 20, namespace="another") == []
    assert cache.said(moved[: 3 + 32 + 7]) == []


def test_a_place_is_followed_until_the_paths_part() -> None:
    cache = Cache()
    cache.remember(TEXT)
    cache.remember([*TEXT[:40], *range(2000, 2040)])  # the newest path is expected
    tree, mine = Tree(cache.paths.find), cache.run(TEXT[:20])
    assert list(tree.propose(mine, ints(*TEXT[:20]), 30)) == TEXT[20:32] + TEXT[32:40] + list(range(2000, 2010))
    assert list(tree.propose(mine, ints(*TEXT[:30]), 2)) == TEXT[30:32]
    assert list(tree.propose(mine, ints(*TEXT[:41]), 4)) == TEXT[41:45], "the other path"
    assert list(tree.propose(mine, ints(*TEXT[:41], 7), 4)) == []
    cache.kv.leave(mine, b"", number=9)


def test_what_was_evicted_is_found_no_more() -> None:
    cache = Cache()
    cache.remember(TEXT)
    cache.kv.flush()
    assert cache.said(TEXT[:20]) == [] and cache.said([5, 6, 7, *TEXT[:40]]) == []
    assert not cache.kv.tree._anchors
