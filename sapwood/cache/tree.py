"""The radix tree that owns the pages of the KV cache.

A tree of pages: each edge is the tokens of one page, so a node is one page per KV group together with everything that
came before it. A node with fewer tokens than a page (a leaf always) is the last page of a finished sequence; it is
reused by copying. Namespaces (adapter, salt) have a root each.

    root ── [You are a] ── [helpful as] ─┬─ [sistant. W]   ← leased by a running sequence: it and its ancestors stay
                                         └─ [sist]         ← a partial leaf

Leases: a sequence leases the deepest node it uses. A node is *sheltered* while it or a descendant is leased. Only
unsheltered leaves are evicted, least recently used first, and a parent whose last child goes becomes a leaf: O(log n)
per page. Groups with a sliding window also lose pages in the middle of the tree: a node's page in such a group can be
evicted while no running sequence has it in its window (`holds`), which leaves -1 in `pages`.

The idea is RadixAttention's (Zheng et al., SGLang, 2023); leases at the deepest node, windows and page-wise edges are
ours.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from sapwood.base.kv import KVGroup
from sapwood.cache.pool import PagePool

ABSENT = -1
COPY_CANDIDATES = 8  # siblings looked at for a partly matching page, newest first
ANCHOR = 8  # tokens at the beginning of a page, if it has as many, by which it may be found from anywhere


class Node:
    """One page per group, or none where nobody needs what it would hold. `born` is the plan that first wrote it; `used` orders eviction.
    `name` is what stores call it, once one has asked."""

    __slots__ = (
        "born",
        "children",
        "hits",
        "holds",
        "key",
        "leases",
        "name",
        "pages",
        "parent",
        "root",
        "shelters",
        "touched",
        "used",
        "users",
    )

    def __init__(self, parent: Node | None, key: bytes, pages: list[int], born: int) -> None:
        self.parent = parent
        self.root: Node = self if parent is None else parent.root
        self.key = key
        self.pages = pages
        self.born = born
        self.children: dict[bytes, Node] = {}
        self.leases = 0
        self.shelters = 0  # 1 if leased, plus the sheltered children
        self.holds = [0] * len(pages)  # sequences that have the page in their window, per group
        self.touched = [0] * len(pages)  # when the last hold ended, per group
        self.used = 0
        self.hits = 0  # times that a request found it
        self.users = 0  # running sequences whose path goes through
        self.name: bytes | None = None


class Watcher(Protocol):
    """Is told of nodes in the midst of what is done with them, so it takes notes and changes nothing."""

    def grown(self, node: Node) -> None:
        """A new node, whose pages are written by the plan that it is born of."""
        ...

    def found(self, node: Node) -> None:
        """A request that runs need not compute it."""
        ...

    def evicted(self, node: Node, group: int) -> None:
        """Its page of a group makes way for another one. What is in it stays until `overwritten`, or the next plan."""
        ...

    def overwritten(self) -> None:
        """What was evicted before may be written to from now on, before there is a plan."""
        ...

    def cut(self, node: Node) -> None:
        """It loses its pages and its parent."""
        ...


class RadixTree:
    """All namespaces' pages of one engine. Token keys are int32 bytes, 4 a token. With `anchors` pages can be found by what
    they begin with."""

    def __init__(self, groups: Sequence[KVGroup], pools: Sequence[PagePool], *, anchors: bool = False) -> None:
        self.page_size = groups[0].page_size
        self.page_bytes = 4 * self.page_size
        self._groups = tuple(groups)
        self.windows = [group.window for group in groups]
        self.windowed = [g for g, window in enumerate(self.windows) if window is not None]
        self.whole = [g for g, group in enumerate(groups) if not group.kind.divisible]  # these are windowed too
        self.written = 0  # the last plan that is complete: what it and those before it write, later ones may begin with
        self.pools = pools
        self.roots: dict[str, Node] = {}
        self.num_nodes = 0
        self.num_sheltered = 0
        self.num_shared = 0  # nodes with more than one user
        self.num_evicted = 0
        # Per windowed group: pages in the tree, and those of them in some running window.
        self.num_present = [0] * len(groups)
        self.num_held = [0] * len(groups)
        self.now = 0  # grows with every use
        self.watchers: list[Watcher] = []
        self._order = itertools.count()
        self._leaves: list[tuple[int, int, Node]] = []
        self.anchor = min(ANCHOR, self.page_size)
        self._anchors: dict[tuple[Node, bytes], Node] | None = {} if anchors else None  # the newest of its beginning
        self._slack: list[list[tuple[int, int, Node]]] = [[] for _ in groups]

    def _stamp(self) -> int:
        self.now += 1
        return self.now

    def root(self, namespace: str) -> Node:
        node = self.roots.get(namespace)
        if node is None:
            node = self.roots[namespace] = Node(None, namespace.encode(), [ABSENT] * len(self.windows), 0)
        return node

    # -- finding ------------------------------------------------------------------------------------------------

    def walk(self, node: Node, keys: bytes, depth: int, end: int) -> list[Node]:
        """The longest path of full pages behind a node at a depth, for the tokens in `keys`, down to the depth `end`."""
        size = self.page_bytes
        path: list[Node] = []
        while depth < end:
            child = node.children.get(keys[depth * size : (depth + 1) * size])
            if child is None:
                break
            path.append(child)
            node, depth = child, depth + 1
        return path

    def match(self, node: Node, keys: bytes, end: int, depth: int = 0) -> list[Node]:
        """As `walk`, as far as it is usable: every page that a query behind the path sees is there, in windowed groups too.

        What is not divisible must have been written before, by a plan that is complete.
        """
        path = self.walk(node, keys, depth, end)
        return path[: self.usable(path, depth)] if self.windowed else path

    def usable(self, path: Sequence[Node], depth: int, *, now: bool = True) -> int:
        """How many nodes of a path behind a usable one at a depth are usable; if not `now`, then once the plan that is being
        made has been."""
        usable = 0
        complete = [0] * len(self.windows)  # per group: pages from here to the end of the path are all present
        for index, node in enumerate(path, start=1):
            good = True
            for g in self.windowed:
                if node.pages[g] == ABSENT or (now and g in self.whole and not self.may_begin(node)):
                    complete[g] = depth + index
                good &= complete[g] <= self.first_seen(g, (depth + index) * self.page_size)
            if good:
                usable = index
        return usable

    def may_begin(self, node: Node) -> bool:
        """Whether the plan that is being made may begin with what the node has, however that is kept."""
        return not self.whole or node.born <= self.written

    def first_seen(self, group: int, position: int) -> int:
        """Index of the first page that a query at `position` needs in the group."""
        return self._groups[group].first_page(position)

    def closest(self, parent: Node, wanted: bytes, before: int) -> tuple[Node, int] | None:
        """The child that shares most leading tokens with `wanted` (bytes of less than or up to a page), and how many.

        Only children written by plans before `before`: a copy runs ahead of the forward of its own plan.
        """
        best: tuple[Node, int] | None = None
        goal = int.from_bytes(wanted, "little")
        for child in itertools.islice(reversed(parent.children.values()), COPY_CANDIDATES):
            if child.born >= before or ABSENT in child.pages:
                continue
            length = min(len(child.key), len(wanted))
            differs = (goal ^ int.from_bytes(child.key, "little")) & ((1 << (8 * length)) - 1)
            shared = length // 4 if not differs else ((differs & -differs).bit_length() - 1) // 32
            if shared and (best is None or shared > best[1]):
                best = child, shared
        return best

    def anchored(self, root: Node, begin: bytes) -> Node | None:
        """The newest page of a namespace whose first `anchor` tokens are these."""
        return None if self._anchors is None else self._anchors.get((root, begin))

    # -- leases and windows -------------------------------------------------------------------------------------

    def lease(self, node: Node) -> None:
        node.leases += 1
        if node.leases > 1:
            return
        walk: Node | None = node
        while walk is not None:
            walk.shelters += 1
            if walk.shelters > 1:
                return
            self.num_sheltered += walk.parent is not None
            walk = walk.parent

    def release(self, node: Node) -> None:
        node.leases -= 1
        if node.leases:
            return
        node.used = self._stamp()
        walk: Node | None = node
        while walk is not None:
            walk.shelters -= 1
            if walk.shelters:
                return
            parent = walk.parent
            self.num_sheltered -= parent is not None
            if not walk.children and parent is not None and self._bare(walk):
                self.remove(walk)
            elif not walk.children:
                self._leaf(walk)
            walk = parent

    def join(self, nodes: Iterable[Node]) -> None:
        """One more running sequence goes through each of the nodes."""
        for node in nodes:
            node.users += 1
            self.num_shared += node.users == 2

    def found(self, nodes: Iterable[Node]) -> None:
        """A request that runs need not compute these nodes."""
        for node in nodes:
            node.hits += 1
            for watcher in self.watchers:
                watcher.found(node)

    def part(self, nodes: Iterable[Node]) -> None:
        """One running sequence less goes through each of the nodes."""
        for node in nodes:
            node.users -= 1
            self.num_shared -= node.users == 1

    def hold(self, node: Node, group: int) -> None:
        """A running sequence has the node's page in its window, or would, if the node had one."""
        if node.holds[group] == 0 and node.pages[group] != ABSENT:
            self.num_held[group] += 1
        node.holds[group] += 1

    def unhold(self, node: Node, group: int, *, spent: bool = False) -> None:
        """It has it no longer; the page is the first to be evicted if it is `spent`."""
        node.holds[group] -= 1
        if node.holds[group] == 0 and node.pages[group] != ABSENT:
            self.num_held[group] -= 1
            node.touched[group] = stamp = 0 if spent else self._stamp()
            heapq.heappush(self._slack[group], (stamp, next(self._order), node))
            if len(self._slack[group]) > 2 * self.num_nodes + 64:
                self._slack[group] = [entry for entry in self._slack[group] if self._is_slack(group, *entry)]
                heapq.heapify(self._slack[group])

    # -- growing and shrinking ----------------------------------------------------------------------------------

    def add(self, parent: Node, key: bytes, pages: list[int], born: int) -> Node:
        """Hand pages to the tree as a new child. The caller leases it, or lets it be evictable through `make_evictable`."""
        node = Node(parent, key, pages, born)
        parent.children[key] = node
        self.num_nodes += 1
        for watcher in self.watchers:
            watcher.grown(node)
        if self._anchors is not None and len(key) >= 4 * self.anchor:
            self._anchors[node.root, key[: 4 * self.anchor]] = node
        for g in self.windowed:
            self.num_present[g] += pages[g] != ABSENT
        return node

    def grow(self, leased: Node, key: bytes, pages: list[int], born: int) -> Node:
        """`add` for a running sequence that leases the parent: the lease goes on to the child, with one user."""
        node = self.add(leased, key, pages, born)
        node.leases = node.shelters = node.users = 1
        self.num_sheltered += 1
        leased.leases -= 1
        if leased.leases:
            leased.shelters += 1
        else:  # the child shelters it in place of the lease
            leased.used = self._stamp()
        return node

    def donate(self, node: Node, group: int, page: int) -> None:
        """Give a node back the windowed page that it had lost."""
        node.pages[group] = page
        self.num_present[group] += 1
        self.num_held[group] += node.holds[group] > 0

    def make_evictable(self, node: Node) -> None:
        """Make a node that nobody leases evictable as the most recently used one."""
        self.lease(node)
        self.release(node)
        for g in self.windowed:
            self.hold(node, g)
            self.unhold(node, g)

    def num_evictable(self, group: int) -> int:
        """Pages of the group that eviction could free now."""
        if self.windows[group] is None:
            return self.num_nodes - self.num_sheltered
        return self.num_present[group] - self.num_held[group]

    def evict(self, group: int, count: int) -> None:
        """Free `count` pages of the group; the caller has made sure that there are as many."""
        target = len(self.pools[group].free) + count
        while len(self.pools[group].free) < target:
            if self.windows[group] is None:
                self._evict_leaf()
            else:
                self._evict_window_page(group)

    def overwrite(self) -> None:
        """Something other than a plan is about to write to pages that were given out."""
        for watcher in self.watchers:
            watcher.overwritten()

    def remove(self, node: Node) -> None:
        """Free an unsheltered leaf's pages and forget it, and those above it that then are leaves without a page."""
        while True:
            parent = self._cut(node)
            if parent.children or parent.shelters:
                return
            parent.used = max(parent.used, node.used)
            if parent.parent is None or not self._bare(parent):
                return self._leaf(parent)
            node = parent

    @staticmethod
    def _bare(node: Node) -> bool:
        """Whether it has no page left, so that as a leaf it is of no use to anybody."""
        return all(page == ABSENT for page in node.pages)

    def _cut(self, node: Node) -> Node:
        """Free an unsheltered leaf's pages; its parent, which has it no longer."""
        parent = node.parent
        assert parent is not None and not node.children and not node.shelters
        for watcher in self.watchers:
            watcher.cut(node)
        del parent.children[node.key]
        node.parent = None
        self.num_nodes -= 1
        if self._anchors is not None and self.anchored(node.root, begin := node.key[: 4 * self.anchor]) is node:
            del self._anchors[node.root, begin]
        for g, page in enumerate(node.pages):
            if page != ABSENT:
                self.pools[g].give(page)
                self.num_present[g] -= self.windows[g] is not None
                self.num_evicted += 1
        return parent

    def recount(self) -> int:
        """Make right what is counted over all nodes, after these are right themselves; how many totals were wrong."""
        nodes = list(self.nodes())
        before = self._totals()
        self.num_nodes = len(nodes)
        self.num_sheltered = sum(node.shelters > 0 for node in nodes)
        self.num_shared = sum(node.users > 1 for node in nodes)
        for g in self.windowed:
            self.num_present[g] = sum(node.pages[g] != ABSENT for node in nodes)
            self.num_held[g] = sum(node.holds[g] > 0 and node.pages[g] != ABSENT for node in nodes)
            slack = [node for node in nodes if node.pages[g] != ABSENT and not node.holds[g]]
            self._slack[g] = [(node.touched[g], next(self._order), node) for node in slack]
            heapq.heapify(self._slack[g])
        leaves = [node for node in nodes if not node.children and not node.shelters]
        self._leaves = [(node.used, next(self._order), node) for node in leaves]
        heapq.heapify(self._leaves)
        self.roots = {name: root for name, root in self.roots.items() if root.children or root.shelters}
        return sum(was != now for was, now in zip(before, self._totals(), strict=True))

    def _totals(self) -> list[int]:
        return [self.num_nodes, self.num_sheltered, self.num_shared, *self.num_present, *self.num_held]

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        stack = [child for root in self.roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _leaf(self, node: Node) -> None:
        if node.parent is None:  # an empty namespace
            self.roots.pop(node.key.decode(), None)
            return
        heapq.heappush(self._leaves, (node.used, next(self._order), node))
        if len(self._leaves) > 2 * self.num_nodes + 64:
            self._leaves = [entry for entry in self._leaves if self._is_leaf(*entry)]
            heapq.heapify(self._leaves)

    @staticmethod
    def _is_leaf(used: int, _: int, node: Node) -> bool:
        return node.used == used and node.parent is not None and not node.children and not node.shelters

    @staticmethod
    def _is_slack(group: int, stamp: int, _: int, node: Node) -> bool:
        gone = node.parent is None or node.pages[group] == ABSENT
        return not gone and node.touched[group] == stamp and not node.holds[group]

    def _evict_leaf(self) -> None:
        while True:
            entry = heapq.heappop(self._leaves)
            if self._is_leaf(*entry):
                node = entry[2]
                for watcher in self.watchers:
                    for g, page in enumerate(node.pages):
                        if page != ABSENT:
                            watcher.evicted(node, g)
                return self.remove(node)

    def _evict_window_page(self, group: int) -> None:
        while True:
            entry = heapq.heappop(self._slack[group])
            if self._is_slack(group, *entry):
                break
        node = entry[2]
        for watcher in self.watchers:
            watcher.evicted(node, group)
        self.pools[group].give(node.pages[group])
        node.pages[group] = ABSENT
        self.num_present[group] -= 1
        self.num_evicted += 1
        if not node.children and not node.shelters and self._bare(node):
            self.remove(node)
