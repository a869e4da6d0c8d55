"""The radix tree and its pools as a state machine against a naive model that remembers whole sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from sapwood.base.kv import Heads, KVGroup, State
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.cache import KVCache
from sapwood.cache.tree import ABSENT
from tests.sim.world import group

PAGE = 2
NUM_PAGES = 24
WINDOW = 5

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=14)


class CacheMachine(RuleBasedStateMachine):
    """Sequences enter, grow and leave. The model: the contents of every page, and every sequence once published."""

    groups = (group(None, PAGE), group(WINDOW, PAGE))

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.kv = KVCache(self.groups, [NUM_PAGES] * len(self.groups))
        # What each page of each group holds: the tokens up to and including it, by position within the page.
        self.contents: list[dict[int, list[tuple[int, ...]]]] = [{} for _ in self.groups]
        self.tables: dict[int, list[dict[int, int]]] = {}
        self.requests: dict[int, tuple[Request, list[int]]] = {}
        self.published: set[tuple[str, tuple[int, ...]]] = set()
        self.number = 0

    @rule(target=running, known=tokens, more=tokens, space=st.sampled_from(["a", "b"]))
    def enter(self, known: list[int], more: list[int], space: str) -> object:
        """A request starts, feeds all its known tokens, and publishes them."""
        self.number += 1
        request = Request(
            self.number, np.array(known, np.int32), SamplingParams(), limit=64, namespace=space, arrival=self.number
        )
        request.slot = self.number
        self.kv.enter(request)
        matched = len(request.hold.nodes) * PAGE
        assert tuple(known[:matched]) in {seq[:matched] for sp, seq in self.published if sp == space} | {()}
        if not all(self.kv.num_available(g) for g in range(len(self.groups))):
            self.kv.leave(request, b"", number=self.number)
            return multiple()
        cached = self.kv.install(request, number=self.number)
        assert matched <= cached < len(known)
        self.tables[request.slot] = [{} for _ in self.groups]
        self.requests[request.slot] = (request, known[:cached])
        self._settle()
        self._check_window(request, known, cached)
        self._grow(request, known)
        return request

    @rule(request=running, more=tokens)
    def grow(self, request: Request, more: list[int]) -> None:
        self._grow(request, more, extend=True)

    @rule(request=consumes(running), discard=st.booleans())
    def leave(self, request: Request, discard: bool) -> None:
        _, fed = self.requests.pop(request.slot)
        self.kv.leave(request, np.array(fed, np.int32).tobytes(), number=self.number, discard=discard)
        self.published.add((request.namespace, tuple(fed)))
        self._settle()
        del self.tables[request.slot]

    @rule()
    def flush(self) -> None:
        self.kv.flush()
        assert self.kv.tree.num_nodes == self.kv.tree.num_sheltered

    def _grow(self, request: Request, more: list[int], extend: bool = False) -> None:
        """Feed tokens, as many as there are pages for."""
        _, fed = self.requests[request.slot]
        start = len(fed)
        known = fed + more if extend else more
        self.number += 1
        count = self.kv.clamp(request, start, len(known) - start, seen=start)
        if self.kv.tree.whole and start % PAGE:  # as `Borders` has it
            count = min(count, PAGE - start % PAGE)
        if count <= 0:
            return
        assert self.kv.reserve(request, start + count, after=start + count)
        fed = known[: start + count]
        self.requests[request.slot] = (request, fed)
        self.kv.publish(request, np.array(fed, np.int32).tobytes(), start=start, number=self.number)
        self.published.add((request.namespace, tuple(fed)))
        self._settle()
        for g, one in enumerate(self.groups):
            for position in range(start if one.kind.divisible else len(fed) - 1, len(fed)):
                page = self.tables[request.slot][g][position // PAGE]
                cells = self.contents[g].setdefault(page, [()] * PAGE)
                cells[position % PAGE] = tuple(fed[: position + 1])
        self._check_window(request, fed, len(fed))

    def _settle(self) -> None:
        """What the device does with the changes of a plan."""
        changes, copies = self.kv.take_changes()
        for g in range(len(self.groups)) if changes is not None else ():
            for slot, index, page in zip(changes[g].slots_A, changes[g].indices_A, changes[g].pages_A, strict=True):
                if int(slot) in self.tables:
                    self.tables[int(slot)][g][int(index)] = int(page)
        for g in range(len(self.groups)) if copies is not None else ():
            for source, target in zip(copies[g].sources_C, copies[g].targets_C, strict=True):
                self.contents[g][int(target)] = list(self.contents[g][int(source)])

    def _check_window(self, request: Request, sequence: list[int], end: int) -> None:
        """Every cell that the next query sees holds what this sequence put, or would have put, there."""
        for g, one in enumerate(self.groups):
            for position in range(one.kind.oldest(end), end):
                page = self.tables[request.slot][g][position // PAGE]
                assert self.contents[g][page][position % PAGE] == tuple(sequence[: position + 1])

    @invariant()
    def every_page_is_somewhere(self) -> None:
        nodes = list(self.kv.tree.nodes())
        for g, pool in enumerate(self.kv.pools):
            pages = pool.free + [node.pages[g] for node in nodes if node.pages[g] != ABSENT]
            pages += [own[g] for request, _ in self.requests.values() for own in request.hold.own if own[g] != ABSENT]
            assert sorted(pages) == list(range(1, NUM_PAGES))
            evictable = [
                node for node in nodes if node.pages[g] != ABSENT and not (node.holds[g] if g else node.shelters)
            ]
            assert self.kv.tree.num_evictable(g) == len(evictable)

    def teardown(self) -> None:
        for request, fed in self.requests.values():
            self.kv.leave(request, np.array(fed, np.int32).tobytes(), number=self.number)
        assert self.kv.audit([]) == 0
        self.kv.flush()
        assert all(len(pool.free) == pool.capacity for pool in self.kv.pools)


CacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestCache = CacheMachine.TestCase


class MixedMachine(CacheMachine):
    """The same with states beside windows: of them a page holds what is behind its last position alone."""

    groups = (group(None, PAGE), group(WINDOW, PAGE), KVGroup(State(((1,),)), 1, PAGE))


MixedMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestMixed = MixedMachine.TestCase


class ChunkedMachine(CacheMachine):
    """The same with chunks, of which a query needs less the nearer it is to the beginning of its own."""

    groups = (
        group(None, PAGE),
        KVGroup(Heads(1, 1, 1, WINDOW, chunked=True), 1, PAGE),
        KVGroup(State(((1,),)), 1, PAGE),
    )


ChunkedMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestChunked = ChunkedMachine.TestCase
