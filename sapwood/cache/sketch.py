"""The tree as somebody looks at it: its shared prefixes, who uses them, and what will be evicted first.

A sketch is drawn while the engine serves, a slice between two steps, so that a large tree holds nobody up. Nodes that come
or go meanwhile are in it or not. Pages in a row that have the same users, hits and shelter are one *twig*.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sapwood.base.request import Request
from sapwood.cache.hold import Hold
from sapwood.cache.tree import Node, RadixTree

SLICE = 1000  # nodes that are looked at at a time, a millisecond or so
MOST_WALKED = 8192  # twigs of one sketch; what is below them is only counted
MOST_TOLD = 2000  # twigs: the largest, each with all that it hangs from
LABEL = 16  # tokens of a twig's beginning
_GROWN = 64  # pages by which a sequence may grow while a sketch is drawn


class Twig:
    """Pages in a row that look alike, from `first` to `last`."""

    __slots__ = ("first", "label", "last", "leases", "pages", "parent", "space", "tokens", "used")

    def __init__(self, first: Node, parent: int, space: int) -> None:
        self.first = self.last = first
        self.label = first.key[: 4 * LABEL]
        self.parent = parent
        self.space = space
        self.pages = 1
        self.tokens = len(first.key) // 4
        self.leases = first.leases
        self.used = first.used

    def grow(self) -> Node | None:
        """Take in the only child if it looks the same; None where the twig ends."""
        last = self.last
        if len(last.children) != 1:
            return None
        (child,) = last.children.values()
        alike = child.users == last.users and child.hits == last.hits and (child.shelters > 0) == (last.shelters > 0)
        if not alike:
            return None
        self.last = child
        if len(self.label) < 4 * LABEL:
            self.label = (self.label + child.key)[: 4 * LABEL]
        self.pages += 1
        self.tokens += len(child.key) // 4
        self.leases += child.leases
        self.used = max(self.used, child.used)
        return child


class Walk:
    """One sketch in the making: the tree from its roots on, what is near them first."""

    def __init__(self, tree: RadixTree) -> None:
        self.twigs: list[Twig] = []
        self.num_walked = 0
        self._waiting = deque(
            (child, -1, space) for space, root in enumerate(tree.roots.values()) for child in root.children.values()
        )

    def go_on(self, count: int) -> bool:
        """Look at about `count` nodes; False once there is nothing left to look at."""
        until = self.num_walked + count
        while self._waiting and len(self.twigs) < MOST_WALKED:
            if self.num_walked >= until:
                return True
            node, parent, space = self._waiting.popleft()
            if node.parent is None:  # it has been evicted meanwhile
                continue
            twig = Twig(node, parent, space)
            while twig.grow() is not None:
                pass
            self.num_walked += twig.pages
            self._waiting.extend((child, len(self.twigs), space) for child in twig.last.children.values())
            self.twigs.append(twig)
        return False


class Sketch:
    """Draws `tree` on request. `running` tells whose paths are to be found in it."""

    def __init__(self, tree: RadixTree, running: Callable[[], Sequence[Request]]) -> None:
        self._tree = tree
        self._running = running
        self._drawing: Iterator[dict[str, Any] | None] = iter(())

    def go_on(self) -> dict[str, Any]:
        """The next slice of a sketch: `done` with the `tree`, or not done yet. The call after that begins another.

        The tree: totals in pages; `twigs`, parallel lists with an entry per twig, parents before their children; and `holders`:
        by running request, the twig in which its path ends.

        Of twigs: `parent` (its place in the lists, -1 for none), `space` (twigs of different ones never share), `page` (the first
        one's number), `pages`, `tokens`, `users` (running sequences that go through), `leases` (those that end in it),
        `hits` (requests that found it), `age` (uses of others since its last), `ahead` (pages that are evicted before it, -1
        where somebody twigs on it), `more` (pages that hang from it and are left out), `label` (its first tokens).
        """
        for tree in self._drawing:
            return {"done": tree is not None, "tree": tree}
        self._drawing = self._draw()
        return self.go_on()

    def _draw(self) -> Iterator[dict[str, Any] | None]:
        """Nothing after each slice of the work, the tree after the last."""
        walk = Walk(self._tree)
        while walk.go_on(SLICE):
            yield None
        twigs = walk.twigs
        weights = _weights(twigs)
        yield None
        ahead = _ahead(twigs)
        yield None
        kept = sorted(sorted(range(len(twigs)), key=lambda at: (-weights[at], at))[:MOST_TOLD])
        place = {at: index for index, at in enumerate(kept)} | {-1: -1}
        yield None
        columns = _columns([twigs[at] for at in kept], self._tree.now)
        columns |= {"parent": [place[twigs[at].parent] for at in kept], "ahead": [ahead[at] for at in kept]}
        columns["more"] = _left_out(columns, [weights[at] for at in kept])
        yield {
            "pages": self._tree.num_nodes,
            "sheltered": self._tree.num_sheltered,
            "shared": self._tree.num_shared,
            "left_out": max(0, self._tree.num_nodes - sum(columns["pages"])),
            "twigs": columns,
            "holders": self._holders(twigs, place),
        }

    def _holders(self, twigs: list[Twig], place: dict[int, int]) -> dict[str, int]:
        ends = {twig.last: at for at, twig in enumerate(twigs)}
        found = {}
        for request in self._running():
            hold: Hold = request.hold
            near = (ends[node] for node in reversed(hold.nodes[-_GROWN:]) if node in ends)
            at = next(near, -1)
            while at not in place:
                at = twigs[at].parent
            found[str(request.id)] = place[at]
        return found


def _columns(twigs: Sequence[Twig], now: int) -> dict[str, list[Any]]:
    return {
        "space": [twig.space for twig in twigs],
        "page": [max(twig.first.pages) for twig in twigs],
        "pages": [twig.pages for twig in twigs],
        "tokens": [twig.tokens for twig in twigs],
        "users": [twig.first.users for twig in twigs],
        "leases": [twig.leases for twig in twigs],
        "hits": [twig.first.hits for twig in twigs],
        "age": [now - twig.used for twig in twigs],
        "label": [np.frombuffer(twig.label, np.int32).tolist() for twig in twigs],
    }


def _left_out(columns: dict[str, list[Any]], weights: list[int]) -> list[int]:
    """Of what each twig weighs, the pages that neither it nor its children in the columns stand for."""
    more = [weight - pages for weight, pages in zip(weights, columns["pages"], strict=True)]
    for weight, parent in zip(weights, columns["parent"], strict=True):
        if parent >= 0:
            more[parent] -= weight
    return more


def _weights(twigs: Sequence[Twig]) -> list[int]:
    """Pages of each twig and all that hangs from it. Parents stand before their children."""
    weights = [twig.pages for twig in twigs]
    for at in range(len(twigs) - 1, -1, -1):
        parent = twigs[at].parent
        if parent >= 0:
            weights[parent] += weights[at]
    return weights


def _ahead(twigs: Sequence[Twig]) -> list[int]:
    """How many pages are evicted before each twig is, -1 for those that are sheltered: what hangs from it goes first."""
    used = [twig.used for twig in twigs]
    for at in range(len(twigs) - 1, -1, -1):
        parent = twigs[at].parent
        if parent >= 0:
            used[parent] = max(used[parent], used[at])
    ahead = [-1] * len(twigs)
    gone = 0
    for at in sorted(range(len(twigs)), key=lambda at: (used[at], -at)):
        if not twigs[at].first.shelters:
            ahead[at] = gone
            gone += twigs[at].pages
    return ahead
