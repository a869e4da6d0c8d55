"""Prefixes on their way from the stores to the device.

A request whose prompt goes on in the stores where the tree ends waits, while pages come through blocks of host memory, in rounds: a
round is read from the stores, and becomes nodes of the tree that anybody may use, whose pages are written between two plans.
Then the request starts like any other, and finds its prefix in the tree.

    prompt   [ tree ......... | in a store ................. | nowhere ... ]
                              round | round | round            computed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from sapwood.base.kv import KVGroup
from sapwood.base.pages import Pager
from sapwood.base.request import Request
from sapwood.base.stake import LATER, NOW, Wait
from sapwood.cache import KVCache
from sapwood.cache.tree import ABSENT, Node
from sapwood.stores.base import KVStore
from sapwood.stores.blocks import Blocks, Item
from sapwood.stores.names import Names, key
from sapwood.stores.pace import PrefillRate

_ROUNDS = 2  # of a request that are under way at once, so that one is read while the other is written
_SHARE = 0.5  # of the device's pages, for prefixes whose requests have not started yet


class Page(NamedTuple):
    """What the node behind `depth` others is to have: of `groups` a page from the stores. It is `new`, or there was a node that had
    those of the other groups."""

    depth: int
    groups: tuple[int, ...]
    new: bool


class Round(NamedTuple):
    ticket: int
    pages: list[Page]
    items: list[Item]


class Arrival:
    """A prefix that a request waits for; `share` is the part of the device's pages that it will have."""

    def __init__(self, namespace: str, tokens: bytes, names: list[bytes], due: list[Page], share: float) -> None:
        self.namespace, self.tokens, self.names, self.share = namespace, tokens, names, share
        self.due = deque(due)
        self.rounds: deque[Round] = deque()

    @property
    def over(self) -> bool:
        return not self.due and not self.rounds


class Arrivals:
    """Has prefixes brought for requests that wait.

    Attributes:
        num_pages, num_failed: Nodes that came to have pages from the stores, and those that did not after all.
    """

    def __init__(
        self, kv: KVCache, store: KVStore, pager: Pager, blocks: Blocks, names: Names, prefill: PrefillRate
    ) -> None:
        self._kv, self._store, self._pager, self._blocks, self._names = kv, store, pager, blocks, names
        self._prefill = prefill
        self._page_bytes = [blocks.shape[1] for blocks in pager.blocks]
        self._round = max(1, min(map(len, blocks.free)) // _ROUNDS)
        self._arrivals: dict[int, Arrival] = {}  # by request, until it starts
        self._refused: dict[int, int] = {}  # requests for which there was no room, and when in `_version`
        self._version = 0  # grows whenever there may be room
        self._came: dict[int, Sequence[bool]] = {}  # by ticket, before their turn
        self._lost: dict[int, list[Item]] = {}  # by ticket, of requests that are gone
        self._moving: deque[tuple[Any, list[Item]]] = deque()
        self.num_pages = self.num_failed = 0

    def ready(self, request: Request) -> Wait:
        """Whether the request need not wait for a prefix (any more)."""
        arrival = self._arrivals.get(request.id)
        if arrival is None:
            if self._refused.get(request.id) == self._version:
                return LATER
            arrival = self._wanted(request)
            if arrival is None:
                self._refused.pop(request.id, None)
                return NOW
            if not self._may_begin(arrival):
                self._refused[request.id] = self._version
                return LATER
            self._refused.pop(request.id, None)
            self._arrivals[request.id] = arrival
        self._request_more(arrival)
        return NOW if arrival.over else LATER

    def forget(self, request: Request) -> None:
        """The request has started, or is gone: nothing more is brought for it."""
        self._refused.pop(request.id, None)
        arrival = self._arrivals.pop(request.id, None)
        if arrival is not None:
            self._lose(arrival)
            self._version += 1

    def loaded(self, ticket: int, good: Sequence[bool]) -> None:
        """A job of the store is over."""
        if (items := self._lost.pop(ticket, None)) is not None:
            self._blocks.give(items)
            return
        self._came[ticket] = good
        for arrival in self._arrivals.values():
            while arrival.rounds and (came := self._came.pop(arrival.rounds[0].ticket, None)) is not None:
                self._install(arrival, arrival.rounds.popleft(), came)
                self._version += arrival.over

    def go_on(self) -> None:
        """Give back blocks whose pages have been written."""
        while self._moving and self._pager.done(self._moving[0][0]):
            self._blocks.give(self._moving.popleft()[1])

    def reset(self) -> None:
        """All requests are gone."""
        for arrival in self._arrivals.values():
            self._lose(arrival)
        self._arrivals.clear()
        self._refused.clear()

    def _lose(self, arrival: Arrival) -> None:
        """Nobody waits for what is still under way."""
        for one in arrival.rounds:
            if self._came.pop(one.ticket, None) is None:
                self._lost[one.ticket] = one.items
            else:
                self._blocks.give(one.items)

    # -- what is wanted -------------------------------------------------------------------------------------------

    def _wanted(self, request: Request) -> Arrival | None:
        """What of a request's prefix is worth being brought; None where nothing is."""
        kv, tree, store = self._kv, self._kv.tree, self._store
        most, tokens = kv.max_match(request), request.tokens.tobytes()
        namespace = kv.namespace(request)
        root = tree.roots.get(namespace)
        path = [] if root is None else tree.walk(root, tokens, 0, most)
        have = tree.usable(path, 0) if tree.windowed else len(path)
        if have == most:
            return None
        names = list(islice(self._names.along(namespace.encode(), tokens, tree.page_bytes), most))
        there = [store.lookup([key(name, g) for name in names]) for g in range(len(kv.groups))]
        cached = [[node.pages[g] != ABSENT for node in path] + [False] * (most - len(path)) for g in range(len(there))]
        depth = reach(kv.groups, [_either(*both) for both in zip(there, cached, strict=True)])
        if depth <= have:
            return None
        firsts = [group.first_page(depth * kv.page_size) for group in kv.groups]
        due = []
        for index in range(depth):
            groups = [g for g, first in enumerate(firsts) if index >= first and not cached[g][index]]
            if groups or index >= len(path):
                due.append(Page(index, tuple(groups), index >= len(path)))
        # A last page of which nobody needs anything is behind a border: what comes there sees nothing of what was before.
        if not due or not due[-1].groups or not self._pays(names, due, (depth - have) * kv.page_size):
            return None
        counts = [sum(g in page.groups for page in due) for g in range(len(there))]
        share = max(count / pool.capacity for count, pool in zip(counts, kv.pools, strict=True))
        return Arrival(namespace, tokens, names, due, share)

    def _pays(self, names: Sequence[bytes], due: Sequence[Page], num_tokens: int) -> bool:
        """Whether so many tokens are there sooner if their pages are loaded."""
        keys = [key(names[page.depth], g) for page in due for g in page.groups]
        num_bytes = sum(self._page_bytes[g] for page in due for g in page.groups)
        return self._store.seconds(keys, num_bytes) < self._prefill.seconds(num_tokens)

    def _may_begin(self, arrival: Arrival) -> bool:
        """Whether there is room for what it brings beside what others were brought and have not begun to use; and none of
        it is on its way to somebody already."""
        taken = sum(other.share for other in self._arrivals.values())
        if taken and taken + arrival.share > _SHARE:
            return False
        first = arrival.names[arrival.due[0].depth]
        return not any(first in other.names for other in self._arrivals.values() if not other.over)

    # -- bringing it ----------------------------------------------------------------------------------------------

    def _request_more(self, arrival: Arrival) -> None:
        """Have the next rounds read, as far as there are blocks."""
        while arrival.due and len(arrival.rounds) < _ROUNDS:
            pages: list[Page] = []
            items: list[Item] = []
            most = self._round
            # Nodes without a page are made along with one that has some: alone they would be of no use to the tree.
            while arrival.due and most and self._blocks.fit(arrival.due[0].groups):
                page = arrival.due.popleft()
                pages.append(page)
                items += [self._blocks.take(key(arrival.names[page.depth], g), g) for g in page.groups]
                most -= bool(page.groups)
            if not items:
                arrival.due.extendleft(reversed(pages))
                return
            keys = [item.key for item in items]
            arrival.rounds.append(Round(self._store.submit_load(keys, self._blocks.views(items)), pages, items))

    def _install(self, arrival: Arrival, one: Round, good: Sequence[bool]) -> None:
        """Make nodes of what has come, as far as it is whole and there is room for it."""
        tree, items, came = self._kv.tree, iter(one.items), iter(good)
        node, first = tree.root(arrival.namespace), one.pages[0].depth
        path = tree.walk(node, arrival.tokens, 0, first)
        node = path[-1] if path else node
        tree.lease(node)
        whole = len(path) == first  # nobody has evicted what it goes on from
        made, moved, targets, depth = list[Node](), list[Item](), list[int](), first
        for page in one.pages:
            mine = list(islice(items, len(page.groups)))
            whole &= all(list(islice(came, len(mine))))
            if whole and page.depth > depth:  # of nodes in between nothing was wanted
                between = tree.walk(node, arrival.tokens, depth, page.depth)
                whole = len(between) == page.depth - depth
                if whole:
                    tree.lease(between[-1])
                    tree.release(node)
                    node = between[-1]
            depth = page.depth + 1
            grown = self._grow(node, arrival, page) if whole else None
            if grown is None:
                whole = False
                self._blocks.give(mine)
                continue
            node, given = grown
            made.append(node)
            used = [item for item in mine if item.group in given]
            moved += used
            targets += [node.pages[item.group] for item in used]
            self._blocks.give(item for item in mine if item.group not in given)
        self._let_go(node, made)
        if moved:
            tree.overwrite()
            self._moving.append((self._pager.load(self._blocks.moves(moved, targets)), moved))
        self.go_on()
        if not whole:
            self.num_failed += len(arrival.due)
            arrival.due.clear()

    def _grow(self, parent: Node, arrival: Arrival, page: Page) -> tuple[Node, tuple[int, ...]] | None:
        """The node of a page behind a leased one, leased in its stead and with its windows held, and of which groups it has a page
        now that it had not; None if there is no room, or a node that was to have more is gone."""
        kv, tree = self._kv, self._kv.tree
        begin = page.depth * tree.page_bytes
        tokens = arrival.tokens[begin : begin + tree.page_bytes]
        node = parent.children.get(tokens)
        if node is None and not page.new:
            return None
        new = page.groups if node is None else tuple(g for g in page.groups if node.pages[g] == ABSENT)
        if any(not kv.num_available(g) for g in new):
            return None
        if node is not None:
            tree.lease(node)  # before anything is evicted for it
        pages = [kv.allocate(g, 1)[0] if g in new else ABSENT for g in range(len(kv.groups))]
        if node is None:
            node = tree.add(parent, tokens, pages, 0)
            tree.lease(node)
        else:
            for g in new:
                tree.donate(node, g, pages[g])
        tree.release(parent)
        for g in tree.windowed:
            tree.hold(node, g)
        self.num_pages += bool(new)
        return node, new

    def _let_go(self, last: Node, made: Sequence[Node]) -> None:
        """From now on they may be evicted, the newest last."""
        tree = self._kv.tree
        for node in made:
            for g in tree.windowed:
                tree.unhold(node, g)
        tree.release(last)


def _either(one: Sequence[bool], other: Sequence[bool]) -> list[bool]:
    return [a or b for a, b in zip(one, other, strict=True)]


def reach(groups: Sequence[KVGroup], there: Sequence[Sequence[bool]]) -> int:
    """How many pages from the first one on make a prefix behind which a query finds all that it needs. `there` tells of each
    group and page whether it is to be had."""
    most = 0
    complete = [0] * len(groups)  # per group: pages from here on are all there
    for index in range(1, len(there[0]) + 1):
        good = True
        for g, group in enumerate(groups):
            if not there[g][index - 1]:
                complete[g] = index
            good &= complete[g] <= group.first_page(index * group.page_size)
        if good:
            most = index
    return most
