"""The side that computes prompts for others: pages are copied aside as soon as their step has landed, chunk by chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from sapwood.base.handoff import Offer
from sapwood.base.pages import Moves, Pager
from sapwood.base.plan import Plan
from sapwood.base.request import Request
from sapwood.base.stake import NOW, Ready, Stake
from sapwood.cache import KVCache
from sapwood.cache.tree import ABSENT, Node
from sapwood.stores.base import Key
from sapwood.stores.handoff.book import Book
from sapwood.stores.names import Names, key


@dataclass(eq=False)
class _Going:
    """A prompt that is computed for somebody else: its tokens, int32 as bytes, of which pages before `depth` were looked at. `left`: its
    request runs no more."""

    ticket: str
    request: Request
    tokens: bytes
    most: int
    depth: int = 0
    left: bool = False


class OfferStake(Stake):
    """Has pages of a `kv` cache that are wanted elsewhere copied to the blocks of a `pager`, as the `book` says.

    Nothing of the tree is leased: a page is copied between two plans, and what the tree has lost by then is computed where it is missed.
    About `at_once` pages are on their way there at most. `closing` is called at the end.
    """

    def __init__(
        self, kv: KVCache, pager: Pager, names: Names, book: Book, *, at_once: int, closing: Callable[[], None]
    ) -> None:
        self._at_once, self._closing = at_once, closing
        self._kv, self._pager, self._names, self._book = kv, pager, names, book
        self._going: dict[int, _Going] = {}
        self._moving: deque[tuple[Any, list[Key]]] = deque()
        self._landed = 0

    def concerns(self, request: Request) -> bool:
        return isinstance(request.handoff, Offer)

    def ready(self, request: Request) -> Ready:
        self._begin(request)
        return NOW

    def enter(self, request: Request, number: int) -> bool:
        self._begin(request).left = False  # anew, if it had to give way
        return True

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        self._going[request.id].left = True

    def forget(self, request: Request) -> None:
        if (going := self._going.pop(request.id, None)) is not None:
            self._book.close(going.ticket)

    def landed(self, plan: Plan) -> None:
        self._landed = plan.number
        if self._going:
            self._collect()
        self._go_on()

    def tidy(self) -> bool:
        self._collect()
        self._go_on()
        self._book.tidy()
        return bool(self._moving or any(going.left for going in self._going.values()))

    def reset(self) -> None:
        self._going.clear()
        self._book.reset()

    def close(self) -> None:
        self._closing()

    def _begin(self, request: Request) -> _Going:
        going = self._going.get(request.id)
        if going is None:
            assert isinstance(request.handoff, Offer)
            tokens, most = request.tokens.tobytes(), self._kv.max_match(request)
            going = self._going[request.id] = _Going(request.handoff.ticket, request, tokens, most)
            self._book.open(going.ticket)
        return going

    def _collect(self) -> None:
        """Have what has been computed copied, as much at once as there may be, and tell of those who have ended."""
        wanted: list[tuple[Key, int, int, int]] = []
        ended: list[str] = []
        room = self._at_once - sum(len(keys) for _, keys in self._moving)
        for id, going in list(self._going.items()):
            for node in self._new(going):
                if len(wanted) >= room:
                    break
                going.depth += 1
                wanted += self._due(going.ticket, node)
            else:
                if going.left:
                    del self._going[id]
                    ended.append(going.ticket)
        if wanted:
            self._moving.append((self._pager.save(self._moves(wanted)), [one[0] for one in wanted]))
        for ticket in ended:
            self._book.close(ticket)

    def _due(self, ticket: str, node: Node) -> Iterator[tuple[Key, int, int, int]]:
        """What of a node is to be copied: names, groups, pages and blocks."""
        name = self._names.of(node)
        for group, page in enumerate(node.pages):
            if page != ABSENT and (block := self._book.put(ticket, key(name, group), group)) is not None:
                yield key(name, group), group, page, block

    def _new(self, going: _Going) -> Iterator[Node]:
        """The full pages of its prompt that have been computed since."""
        tree = self._kv.tree
        root = tree.roots.get(self._kv.namespace(going.request))
        path = [] if root is None else tree.walk(root, going.tokens, 0, going.most)
        return takewhile(lambda node: node.born <= self._landed, path[going.depth :])

    def _moves(self, wanted: Sequence[tuple[Key, int, int, int]]) -> list[Moves]:
        found = []
        for group in range(len(self._kv.groups)):
            pairs = [(page, block) for _, of, page, block in wanted if of == group]
            pages, blocks = np.array(pairs, np.int32).reshape(-1, 2).T
            found.append(Moves(pages, blocks))
        return found

    def _go_on(self) -> None:
        while self._moving and self._pager.done(self._moving[0][0]):
            self._book.ready(self._moving.popleft()[1])
