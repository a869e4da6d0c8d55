"""Which runs of pages the steady rows share, so that attention may read each once for all of them.

The paths of the steady rows form a trie. A *segment* is a stretch of it that the same rows go through:

    a   [ S ][ S ][ X ][ X ][ a ]
    b   [ S ][ S ][ X ][ X ][ b ][ b ]         segments   S  of a b c d, 2 branches (X and Y)
    c   [ S ][ S ][ Y ][ c ]                              X  of a b,     2 branches (two rows)
    d   [ S ][ S ][ Y ][ d ]                              Y  of c d,     2 branches (two rows)

At first each segment is a run. A run is not free: every member's partial result must be written, read and merged. So
segments are *dissolved*, cheapest first: each branch then reads the pages by itself, as the beginning of its own run or
as private pages. That costs (branches - 1) x tokens and keeps the runs of a row without gaps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from sapwood.base.plan import RUN_LEVELS, Ints, Runs
from sapwood.base.request import Request
from sapwood.cache.hold import Hold
from sapwood.cache.tree import Node


class RunCost(NamedTuple):
    """What a run must save, counted in tokens whose keys and values are not read again: once, and for each member.

    Merging one partial result (float32, a row of queries) moves about as many bytes as reading a dozen tokens.
    """

    run: int = 512
    member: int = 16


class SharedRuns:
    """The runs of the steady rows, looked for again only when they may have changed."""

    def __init__(self, page_size: int, cost: RunCost) -> None:
        self.page_size = page_size
        self.cost = cost
        self.exchanged = 0  # pages that became shared, since the last search, by rows that were running already
        self._version: int | None = None  # of the steady rows looked at last
        self._runs: Runs | None = None
        self._number = 0

    def find(self, steady: Ints, version: int, requests: Sequence[Request | None]) -> Runs | None:
        """The runs of the slots in `steady`, which are the same for as long as their `version` is.

        Paths of rows that stay only grow. They grow together when two compute the same and exchange pages, which is
        passed over until it may save as much as a run has to.
        """
        grown = self.exchanged and self.exchanged * self.page_size >= self.cost.run
        if version == self._version and not grown:
            return self._runs
        self._version = version
        self.exchanged = 0
        rows = ((slot, _hold(requests[slot])) for slot in steady.tolist())
        runs = find_runs(rows, self.page_size, self.cost, version=self._number + 1)
        if runs is None or self._runs is None or not _same(runs, self._runs):
            self._runs = runs
            self._number += 1
        return self._runs

    def nothing(self) -> None:
        """No page has two users."""
        self._version = self._runs = None
        self.exchanged = 0


class _Segment:
    """Nodes [low, high) of the paths of `members` rows. `branches`: kept segments right below, and rows that go on alone."""

    __slots__ = ("above", "branches", "dissolved", "high", "members", "slots")

    def __init__(self, high: int) -> None:
        self.high = high
        self.above: _Segment | None = None
        self.branches = 0
        self.members = 0
        self.dissolved = False
        self.slots: list[int] = []  # of the members, in the end

    def kept_above(self) -> _Segment | None:
        above = self.above
        while above is not None and above.dissolved:
            above = above.above
        self.above = above
        return above

    @property
    def low(self) -> int:
        above = self.kept_above()
        return 0 if above is None else above.high

    def loss(self) -> int:
        """Pages more to read if it were dissolved. Dissolving others only adds to it."""
        return (self.branches - 1) * (self.high - self.low)

    def dissolve(self) -> None:
        above = self.kept_above()
        if above is not None:
            above.branches += self.branches - 1
        self.dissolved = True

    def chain(self) -> list[_Segment]:
        """The kept segments from this one up to the root."""
        chain = [] if self.dissolved else [self]
        above = self.kept_above()
        while above is not None:
            chain.append(above)
            above = above.kept_above()
        return chain


class _Bundle(NamedTuple):
    """Rows whose paths part at one node: the first `depth` of `nodes` lead to it."""

    nodes: list[Node]
    depth: int
    slots: list[int]


def find_runs(rows: Iterable[tuple[int, Hold]], page_size: int, cost: RunCost, *, version: int = 0) -> Runs | None:
    """The runs worth sharing among the rows, each given by its slot and what it holds; None if there are none."""
    bundles = _bundle(rows)
    segments = _segments(bundles.values())
    _dissolve_cheap(list(segments.values()), page_size, cost)
    for node in bundles:
        chain = segments[node].chain()
        if len(chain) > RUN_LEVELS:
            for segment in sorted(chain, key=_Segment.loss)[:-RUN_LEVELS]:
                segment.dissolve()
    for node, bundle in bundles.items():
        for segment in segments[node].chain():
            segment.slots.extend(bundle.slots)
    kept = [segment for segment in segments.values() if segment.slots]
    return _pack(kept, page_size, version) if kept else None


def _bundle(rows: Iterable[tuple[int, Hold]]) -> dict[Node, _Bundle]:
    """The rows by the deepest node that has other users."""
    bundles: dict[Node, _Bundle] = {}
    for slot, hold in rows:
        nodes, depth = hold.nodes, hold.shared
        # Mostly as deep as last time. Along a path the number of users only falls.
        if (depth < len(nodes) and nodes[depth].users > 1) or (depth and nodes[depth - 1].users < 2):
            depth = hold.shared = bisect_left(nodes, True, key=lambda node: node.users < 2)
        if depth:
            deepest = nodes[depth - 1]
            bundle = bundles.get(deepest)
            if bundle is None:
                bundle = bundles[deepest] = _Bundle(nodes, depth, [])
            bundle.slots.append(slot)
    return bundles


def _segments(bundles: Iterable[_Bundle]) -> dict[Node, _Segment]:
    """The segments of the bundles' paths, by their last node; borders are where the number of users changes.

    Users that are not among the rows (prompts, say) make borders, too; there one branch goes on, and nothing is lost by
    dissolving.
    """
    segments: dict[Node, _Segment] = {}
    for nodes, high, slots in bundles:
        below: _Segment | None = None
        while high:
            last = nodes[high - 1]
            known = segments.get(last)
            segment = segments[last] = known or _Segment(high)
            if below is None:
                segment.branches += len(slots)
                segment.members += len(slots)
            else:
                below.above = segment
                segment.branches += 1
            if known:
                break
            below, high = segment, _start(nodes, high)
    for segment in sorted(segments.values(), key=lambda segment: -segment.high):
        if segment.above is not None:
            segment.above.members += segment.members
    return segments


def _start(nodes: list[Node], high: int) -> int:
    """Index of the first node that has as many users as the one before `high`."""
    users = nodes[high - 1].users
    if nodes[0].users == users:
        return 0
    return bisect_left(nodes, True, hi=high, key=lambda node: node.users == users)


def _dissolve_cheap(segments: list[_Segment], page_size: int, cost: RunCost) -> None:
    """Dissolve what saves less than it costs, the cheapest first, since its neighbours then save more."""

    def worthwhile(segment: _Segment, loss: int) -> bool:
        return loss > 0 and loss * page_size >= cost.run + cost.member * segment.members

    heap = []
    for i, segment in enumerate(segments):
        loss = segment.loss()
        if not worthwhile(segment, loss):
            heap.append((loss, i))
    heapify(heap)
    while heap:
        loss, i = heappop(heap)
        segment = segments[i]
        now = segment.loss()
        if now == loss:
            segment.dissolve()
        elif not worthwhile(segment, now):
            heappush(heap, (now, i))


def _pack(segments: list[_Segment], page_size: int, version: int) -> Runs:
    sizes = [0, *(len(segment.slots) for segment in segments)]
    return Runs(
        version=version,
        lows_U=np.array([segment.low * page_size for segment in segments], np.int32),
        highs_U=np.array([segment.high * page_size for segment in segments], np.int32),
        offsets_U1=np.cumsum(sizes, dtype=np.int32),
        slots_M=np.array([slot for segment in segments for slot in segment.slots], np.int32),
    )


def _hold(request: Request | None) -> Hold:
    assert request is not None
    hold: Hold = request.hold
    return hold


def _same(a: Runs, b: Runs) -> bool:
    return (
        np.array_equal(a.slots_M, b.slots_M)
        and np.array_equal(a.offsets_U1, b.offsets_U1)
        and np.array_equal(a.highs_U, b.highs_U)
        and np.array_equal(a.lows_U, b.lows_U)
    )
