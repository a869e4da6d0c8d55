"""The KV cache as a resource of the scheduler: matching, reserving, publishing and giving back pages.

A sequence's pages, by position:

    positions   0 ........ P ........ 2P ....... 3P ....... 4P
    pages       [ tree      | tree     | own      | own   ...]
                  hold.nodes (shared)    hold.own (private until full, planned and known)

Pages whose tokens are known go to the tree at plan time, before the step that fills them has run: another request of
the same plan finds them there, and because a layer writes its keys before anyone reads them, it may use them at once.
Pages of generated tokens go there when the sequence next crosses a page border, since their tokens become known later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.base.kv import KVGroup
from sapwood.base.plan import Ints, PageChange, PageCopy, Runs
from sapwood.base.request import Request
from sapwood.cache.audit import audit
from sapwood.cache.changes import Changes
from sapwood.cache.hold import Hold
from sapwood.cache.pool import PagePool
from sapwood.cache.runs import RunCost, SharedRuns
from sapwood.cache.tree import ABSENT, Node, RadixTree


class KVCache:
    """Pools and tree of one engine. Not thread-safe; the scheduler is its only caller.

    `reuse=False` gives every request a namespace of its own, so nothing is ever shared. With `anchors` the tree's paths can be
    searched (see `sapwood.cache.paths`). `run_cost` is what a run that
    several rows share must save (see `sapwood.cache.runs`).

    Attributes:
        relief: Grows whenever running requests come to need or to have fewer pages that are not free.
        num_copied: Pages that were copied because they began as wanted.
        epoch: Of the weights; what was computed in another is found by nobody (`sapwood.cache.epochs`).
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        num_pages: Sequence[int],
        *,
        reuse: bool = True,
        anchors: bool = False,
        run_cost: RunCost = RunCost(),  # noqa: B008 (immutable)
    ) -> None:
        self.groups = tuple(groups)
        self.reuse = reuse
        self.pools = [PagePool(count) for count in num_pages]
        self.tree = RadixTree(groups, self.pools, anchors=anchors)
        self.page_size = self.tree.page_size
        self.num_copied = 0
        self.epoch = ""
        self.relief = 0
        self._shared_runs = SharedRuns(self.page_size, run_cost)
        self._windows_only = all(group.window is not None for group in groups)
        self._changes = Changes(len(groups))
        self._number = 0  # of the last plan for which something was published
        self._copies: list[tuple[list[int], list[int]]] = [([], []) for _ in groups]
        self._pinned: list[Node] = []

    # -- the scheduler's questions --------------------------------------------------------------------------------

    def peek(self, request: Request) -> int:
        """How many of a waiting request's tokens are cached, without touching anything."""
        tree, most = self.tree, self.max_match(request)
        root = tree.roots.get(self.namespace(request))
        if root is None:
            return 0
        if tree.windowed:
            return self.page_size * len(tree.match(root, request.tokens.tobytes(), most))
        # Go on from where the last look ended: under longest-prefix-first each step looks at hundreds.
        seen: tuple[Node, int] | None = request.hold
        node, depth = (root, 0) if seen is None or seen[0].parent is None else seen
        while depth < most:
            key = request.tokens[depth * self.page_size : (depth + 1) * self.page_size].tobytes()
            child = node.children.get(key)
            if child is None:
                break
            node, depth = child, depth + 1
        request.hold = node, depth
        return self.page_size * depth

    def enter(self, request: Request) -> None:
        """Lease the cached prefix of a request that may be about to run.

        The last known token is never taken from the cache, since its logits are wanted.
        """
        tree = self.tree
        root = tree.root(self.namespace(request))
        nodes = tree.match(root, request.tokens.tobytes(), self.max_match(request))
        hold = request.hold = Hold(root, nodes, len(self.groups), len(request.tokens) // self.page_size)
        tree.lease(hold.deepest)
        tree.join(nodes)
        matched = len(nodes) * self.page_size
        for g in tree.windowed:
            hold.low[g] = tree.first_seen(g, matched)
            for node in nodes[hold.low[g] :]:
                tree.hold(node, g)

    def fits(self, request: Request, num_tokens: int, reserved: Sequence[int]) -> bool:
        """Whether a request that has entered can grow to `num_tokens` and leave `reserved` pages per group to others."""
        hold: Hold = request.hold
        for g, group in enumerate(self.groups):
            tokens = num_tokens - hold.num_pages * self.page_size
            if group.window is not None:
                tokens = min(tokens, group.window + 2 * self.page_size)
            if -(-tokens // self.page_size) + reserved[g] > self.num_available(g):
                return False
        return True

    def install(self, request: Request, *, number: int) -> int:
        """Put the pages of an entered request into the page table of the slot that it was given by plan `number`.

        Takes one page more when the next one is partly cached: the plan copies it. Returns how many tokens are cached.
        """
        hold: Hold = request.hold
        self.tree.found(hold.nodes)
        cached = len(hold.nodes) * self.page_size
        if request.scored:
            wanted = request.tokens[cached : min(len(request.tokens) - 1, cached + self.page_size)]
            cached += self._copy_partial(hold, wanted.tobytes(), number)
        for g in range(len(self.groups)):
            found = [node.pages[g] for node in hold.nodes[hold.low[g] :]] + [own[g] for own in hold.own]
            self._changes.put(g, request.slot, hold.low[g], found)
        return cached

    def extend(self, request: Request, fed: int, tokens: bytes) -> int:
        """Follow the tree on from `fed` where another request has meanwhile had the same tokens computed.

        `tokens` are all known tokens as int32 bytes. Returns the new `fed`.
        """
        hold: Hold = request.hold
        tree, depth, start = self.tree, len(hold.nodes), hold.deepest
        path = tree.match(start, tokens, self._behind(request, fed, tokens), depth)
        if not path:
            return fed
        tree.join(path)
        tree.found(path)
        for g in range(len(self.groups)):
            self._changes.put(g, request.slot, depth, [max(0, node.pages[g]) for node in path])
        for node in path:
            self._append(hold, node)
        tree.lease(path[-1])
        tree.release(start)
        self.relief += 1
        return len(hold.nodes) * self.page_size

    def ahead(self, request: Request, fed: int, tokens: bytes) -> tuple[int, bool]:
        """How far the tree goes on from `fed` as `tokens` do, in tokens, and whether `extend` will follow it once the plan that
        is being made has been."""
        hold: Hold = request.hold
        depth = len(hold.nodes)
        path = self.tree.walk(hold.deepest, tokens, depth, self._behind(request, fed, tokens))
        return fed + len(path) * self.page_size, self.tree.usable(path, depth, now=False) > 0

    def _behind(self, request: Request, fed: int, tokens: bytes) -> int:
        """The most pages that a request that has come so far may find in the tree; none if it is not where the tree's end."""
        hold: Hold = request.hold
        at_border = not hold.own and fed == len(hold.nodes) * self.page_size
        return (len(tokens) // 4 - 1) // self.page_size if at_border and request.scored else 0

    def clamp(self, request: Request, start: int, count: int, *, seen: int) -> int:
        """How many of `count` positions from `start` on there are pages for, free or to be had by eviction.

        No query before position `seen` will come any more: windows move on.
        """
        hold: Hold = request.hold
        self._slide(hold, seen)
        available = [self.num_available(g) for g in range(len(self.groups))]
        # Of what is not divisible one page is enough for all positions, that of the last.
        pages = min(count if most and g in self.tree.whole else most for g, most in enumerate(available))
        return min(count, (hold.num_pages + pages) * self.page_size - start)

    def reserve(self, request: Request, end: int, after: int = 0) -> bool:
        """Have pages for all positions below `end`, all or nothing; of what is not divisible for those that queries from
        position `after` on will need."""
        hold: Hold = request.hold
        first, last = hold.num_pages, -(-end // self.page_size)
        if last <= first:
            return True
        firsts = [first] * len(self.groups)
        for g in self.tree.whole:
            firsts[g] = max(first, self.tree.first_seen(g, after))
        if any(last - begin > self.num_available(g) for g, begin in enumerate(firsts)):
            return False
        new = [[ABSENT] * len(self.pools) for _ in range(first, last)]
        for g, begin in enumerate(firsts):
            pages = self.allocate(g, last - begin)
            self._changes.put(g, request.slot, begin, pages)
            for own, page in zip(new[begin - first :], pages, strict=True):
                own[g] = page
        hold.own.extend(new)
        return True

    def allocate(self, group: int, count: int) -> list[int]:
        """So many pages, which are available."""
        pool = self.pools[group]
        if count > len(pool.free):
            self.tree.evict(group, count - len(pool.free))
        return pool.allocate(count)

    def horizon(self, request: Request) -> int:
        """The position up to which the request has pages."""
        hold: Hold = request.hold
        return hold.num_pages * self.page_size

    def publish(self, request: Request, tokens: bytes, *, start: int, number: int) -> None:
        """Give the tree every private page whose tokens are in `tokens` (known and planned, int32 bytes).

        `start` is the first position that plan `number` may write for this request: a page that the tree has already is
        exchanged for the tree's, but not while we write to it, nor while the tree's may not be begun with.
        """
        self._number = max(self._number, number)
        hold: Hold = request.hold
        size = self.tree.page_bytes
        full = len(tokens) // size
        while hold.own and (depth := len(hold.nodes)) < full:
            key = tokens[depth * size : (depth + 1) * size]
            known = hold.deepest.children.get(key)
            if known is None:
                self._append(hold, self.tree.grow(hold.deepest, key, hold.own.pop(0), number))
            elif (depth + 1) * self.page_size <= start and self.tree.may_begin(known):
                self._exchange(hold, known, request.slot)
            else:
                break

    def advance(
        self, slots: Ints, requests: Sequence[Request | None], starts: Ints, planned: Ints, history: Ints, number: int
    ) -> bool:
        """Publish what is full and take one page more, for many sequences at once: each is at the end of its pages.

        Returns False, and does nothing, if that is not simple: there are windows, or not enough pages for all.

        Args:
            slots: The sequences; int32, like the next three.
            requests: All running requests, by slot.
            starts: Where plan `number` starts to write for each of the sequences.
            planned: How many tokens of each are known and planned.
            history: Tokens by slot and position.
            number: The plan's.
        """
        if self.tree.windowed or any(len(slots) > self.num_available(g) for g in range(len(self.groups))):
            return False
        running = [_running(requests[slot]) for slot in slots.tolist()]
        holds: list[Hold] = [request.hold for request in running]
        self._publish_next(running, holds, slots, planned, history, number)
        indices = starts // self.page_size
        taken = []
        for g in range(len(self.groups)):
            pages = self.allocate(g, len(slots))
            self._changes.put_each(g, slots, indices, pages)
            taken.append(pages)
        for hold, own in zip(holds, zip(*taken, strict=True), strict=True):
            hold.own.append(list(own))
        return True

    def _publish_next(
        self, running: list[Request], holds: list[Hold], slots: Ints, planned: Ints, history: Ints, number: int
    ) -> None:
        """Publish the next page of each sequence that has a full one; where that is not all, `publish` does the rest."""
        size, page_bytes, grow = self.page_size, self.tree.page_bytes, self.tree.grow
        depths = np.array([len(hold.nodes) for hold in holds])
        full = planned // size
        ready = (full > depths).nonzero()[0]
        rest = (full > depths + 1).nonzero()[0].tolist()
        keys = history[slots[ready, None], depths[ready, None] * size + np.arange(size)].tobytes()
        for at, i in enumerate(ready.tolist()):
            hold = holds[i]
            parent = hold.nodes[-1] if hold.nodes else hold.root
            key = keys[at * page_bytes : (at + 1) * page_bytes]
            if key in parent.children:
                rest.append(i)
            else:
                hold.nodes.append(grow(parent, key, hold.own.pop(0), number))
        for i in rest:
            end = int(planned[i])
            self.publish(running[i], history[slots[i], :end].tobytes(), start=end, number=number)

    def leave(self, request: Request, tokens: bytes, *, number: int, discard: bool = False) -> None:
        """Give everything back. `tokens` as for `publish`; they stay cached, the last partial page too.

        `discard` forgets what only this request has used, instead: its contents are not to be trusted.
        """
        hold: Hold = request.hold
        tree = self.tree
        if not discard:
            self.publish(request, tokens, start=len(tokens) // 4, number=number)
            self._keep_partial(hold, tokens[len(hold.nodes) * tree.page_bytes :], number)
        request.hold = None
        self.relief += 1
        tree.part(hold.nodes)
        for own in hold.own:
            self._give(own)
        for g in tree.windowed:
            for node in hold.nodes[hold.low[g] :]:
                tree.unhold(node, g)
        tree.release(hold.deepest)
        if discard:
            for node in reversed(hold.nodes):
                if node.children or node.shelters:
                    break
                if node.parent is not None:  # else it went with its last child
                    tree.remove(node)

    def take_changes(self) -> tuple[tuple[PageChange, ...] | None, tuple[PageCopy, ...] | None]:
        """What a plan that is complete changes in page tables, and the copies to make, per group; None where there are none."""
        copies = None
        self.tree.written = self._number
        if self._pinned:
            copies = tuple(PageCopy(*(np.array(column, dtype=np.int32) for column in group)) for group in self._copies)
            for columns in self._copies:
                for column in columns:
                    column.clear()
            for node in self._pinned:
                self._unpin(node)
            self._pinned.clear()
        return self._changes.take(), copies

    def runs(self, steady: Ints, version: int, requests: Sequence[Request | None]) -> Runs | None:
        """The runs of pages that the steady rows share, worth being read once.

        `steady` are slots, the same ones for as long as their `version` is; `requests` are by slot.
        """
        if self._windows_only or not self.tree.num_shared:
            self._shared_runs.nothing()
            return None
        return self._shared_runs.find(steady, version, requests)

    def num_available(self, group: int) -> int:
        """Pages of the group that are free or could be at once."""
        return len(self.pools[group].free) + self.tree.num_evictable(group)

    def flush(self) -> int:
        """Forget everything that nobody leases; return how many pages that freed."""
        before = sum(len(pool.free) for pool in self.pools)
        for node in reversed(list(self.tree.nodes())):  # children come before their parents
            if node.parent is not None and not node.children and not node.shelters:
                self.tree.remove(node)
        return sum(len(pool.free) for pool in self.pools) - before

    def audit(self, running: Sequence[Request]) -> int:
        """Compare the books with what running requests really have; mend them; return how many entries were wrong."""
        wrong = audit(self.tree, [request.hold for request in running])
        self.relief += wrong
        return wrong

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        """What was evicted and copied since the start."""
        return {"evicted_pages": self.tree.num_evicted, "copied_pages": self.num_copied}, {}

    def pages(self) -> list[list[int]]:
        """Per group: pages in all, free ones, and those that could be evicted."""
        return [[pool.capacity, len(pool.free), self.tree.num_evictable(g)] for g, pool in enumerate(self.pools)]

    def max_match(self, request: Request) -> int:
        return (len(request.tokens) - 1) // self.page_size if request.scored else 0

    def namespace(self, request: Request) -> str:
        return request.namespace + self.epoch + ("" if self.reuse else f"\0{request.arrival}")

    # -- parts ------------------------------------------------------------------------------------------------------

    def _give(self, own: Sequence[int]) -> None:
        """Give back what there is of a private page."""
        for pool, page in zip(self.pools, own, strict=True):
            if page != ABSENT:
                pool.give(page)

    def _append(self, hold: Hold, node: Node) -> None:
        hold.nodes.append(node)
        for g in self.tree.windowed:
            self.tree.hold(node, g)

    def _slide(self, hold: Hold, start: int) -> None:
        """Let go of windowed pages that no query at or behind `start` sees.

        Of what is not divisible, pages behind what was asked are spent: other requests go on from the end of an answer, seldom
        from its midst.
        """
        for g in self.tree.windowed:
            low = min(self.tree.first_seen(g, start), len(hold.nodes))
            for index in range(hold.low[g], low):
                self.tree.unhold(hold.nodes[index], g, spent=g in self.tree.whole and index >= hold.asked)
                self.relief += 1
            hold.low[g] = max(hold.low[g], low)

    def _copy_partial(self, hold: Hold, wanted: bytes, number: int) -> int:
        """Copy the page that begins like `wanted` into one of our own; return how many tokens that saves."""
        if not wanted or self.tree.whole:
            return 0
        found = self.tree.closest(hold.deepest, wanted, number)
        if found is None:
            return 0
        source, shared = found
        # Keep the source from being evicted, for this very copy or another one's target, until the plan is made.
        self.tree.lease(source)
        for g in self.tree.windowed:
            self.tree.hold(source, g)
        possible = all(self.num_available(g) for g in range(len(self.groups)))
        if possible:
            own: list[int] = []
            for g in range(len(self.groups)):
                own += self.allocate(g, 1)
                self._copies[g][0].append(source.pages[g])
                self._copies[g][1].append(own[g])
            hold.own.append(own)
            self._pinned.append(source)
            self.num_copied += 1
        else:
            self._unpin(source)
        return shared if possible else 0

    def _unpin(self, source: Node) -> None:
        self.relief += 1
        self.tree.release(source)
        for g in self.tree.windowed:
            self.tree.unhold(source, g)

    def _exchange(self, hold: Hold, node: Node, slot: int) -> None:
        """Use the tree's page, which somebody else had computed too, and give ours back."""
        own = hold.own.pop(0)
        for g, page in enumerate(own):
            if page != ABSENT and node.pages[g] == ABSENT:
                self.tree.donate(node, g, page)
                own[g] = ABSENT
            elif page != ABSENT:
                self._changes.put(g, slot, len(hold.nodes), (node.pages[g],))
        self._give(own)
        self.tree.lease(node)
        self.tree.release(hold.deepest)
        self.tree.join((node,))
        self._append(hold, node)
        self.relief += 1
        self._shared_runs.exchanged += 1

    def _keep_partial(self, hold: Hold, key: bytes, number: int) -> None:
        if key and hold.own and not self.tree.whole and key not in hold.deepest.children:
            self.tree.make_evictable(self.tree.add(hold.deepest, key, hold.own.pop(0), number))


def _running(request: Request | None) -> Request:
    assert request is not None
    return request
