"""Pages on their way from the device to the stores."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from sapwood.base.pages import Pager
from sapwood.cache import KVCache
from sapwood.cache.tree import ABSENT, Node
from sapwood.stores.base import Key, KVStore
from sapwood.stores.blocks import Blocks, Item
from sapwood.stores.names import Names, key


class Departures:
    """Saves the tree's pages with their `hits`th hit, or with 0 all: once they are computed, while they are there, as fast as blocks
    become free. With None it saves those that make way for others, as far as there are blocks at once. Those that are found on the device count as wanted in the stores, which would give up what is always there first.

    Nothing is leased: a page is copied between two plans, and what the tree has then is what the last of them leaves.
    """

    def __init__(
        self, kv: KVCache, store: KVStore, pager: Pager, blocks: Blocks, names: Names, *, hits: int | None = 0
    ) -> None:
        self._tree, self._store, self._pager, self._blocks, self._names = kv.tree, store, pager, blocks, names
        self._hits = hits
        self._noted: deque[Node] = deque()
        self._tree.watchers.append(self)
        self._found: dict[Node, None] = {}  # in their order
        self._evicted: list[
            tuple[Key, int, int]
        ] = []  # whose pages are still what they were: with their groups and places
        self._landed = 0  # the last plan that has
        self._due: deque[Node] = deque()
        self._moving: deque[tuple[Any, list[Item]]] = deque()  # with the pager's handle
        self._storing: dict[int, list[Item]] = {}  # by ticket
        self.num_lost = 0

    @property
    def busy(self) -> bool:
        return bool(self._evicted or self._due or self._moving or self._storing)

    def grown(self, node: Node) -> None:
        if self._hits == 0:
            self._noted.append(node)

    def found(self, node: Node) -> None:
        if self._hits is None or node.hits > self._hits:
            self._found[node] = None
        elif node.hits == self._hits:
            self._noted.append(node)

    def evicted(self, node: Node, group: int) -> None:
        if self._hits is None and node.born <= self._landed and self._whole(node):
            self._evicted.append((key(self._names.of(node), group), group, node.pages[group]))

    def overwritten(self) -> None:
        """Have what was evicted copied while it can be."""
        evicted, self._evicted = self._evicted, []
        kept: list[tuple[Key, int, int]] = []
        room = [len(free) for free in self._blocks.free]
        for one in self._unknown(evicted):
            if room[one[1]]:
                room[one[1]] -= 1
                kept.append(one)
            else:
                self.num_lost += 1
        self._save(kept)

    def cut(self, node: Node) -> None:
        pass  # `_whole` sees it

    def leave(self) -> None:
        """All that is on the device is about to go."""
        if self._hits is None:
            self._due.extend(node for node in self._tree.nodes() if node.born <= self._landed)

    def landed(self, number: int) -> None:
        """All plans up to that one have landed: what they wrote is right."""
        self._landed = number
        while self._noted and self._noted[0].born <= number:
            self._due.append(self._noted.popleft())
        if self._due or self._moving:
            self.go_on()
        if self._found:
            self._touch()

    def go_on(self) -> None:
        """Do what can be done now."""
        self.overwritten()
        self._save(self._unknown(self._wanted()))
        while self._moving and self._pager.done(self._moving[0][0]):
            _, moved = self._moving.popleft()
            self._storing[self._submit(moved)] = moved

    def stored(self, ticket: int, good: Sequence[bool]) -> bool:
        """A job of the store is over; whether it was one of these."""
        items = self._storing.pop(ticket, None)
        if items is None:
            return False
        self._blocks.give(items)
        self.num_lost += len(good) - sum(good)
        return True

    def reset(self) -> None:
        """What was computed is lost; what is moving was computed before."""
        self._noted.clear()
        self._found.clear()
        self._evicted.clear()
        self._due.clear()

    def _unknown(self, pages: Sequence[tuple[Key, int, int]]) -> list[tuple[Key, int, int]]:
        """Those that the store has not."""
        kept = self._store.lookup([one for one, _, _ in pages])
        return [one for one, known in zip(pages, kept, strict=True) if not known]

    def _save(self, pages: Sequence[tuple[Key, int, int]]) -> None:
        """Begin to copy pages, for which there are blocks."""
        if pages:
            items = [self._blocks.take(name, g) for name, g, _ in pages]
            moves = self._blocks.moves(items, [page for _, _, page in pages])
            self._moving.append((self._pager.save(moves), items))

    def _touch(self) -> None:
        found = [(node, self._names.of(node)) for node in reversed(self._found) if self._whole(node)]
        self._found.clear()
        self._store.touch([key(name, g) for node, name in found for g, page in enumerate(node.pages) if page != ABSENT])

    def _wanted(self) -> list[tuple[Key, int, int]]:
        """Pages that are due, as far as there are blocks: the key of each, its group and where it is."""
        found: list[tuple[Key, int, int]] = []
        room = [len(free) for free in self._blocks.free]
        while self._due:
            node = self._due[0]
            there = [g for g, page in enumerate(node.pages) if page != ABSENT] if self._whole(node) else []
            if not all(room[g] for g in there):
                break
            self._due.popleft()
            for g in there:
                room[g] -= 1
                found.append((key(self._names.of(node), g), g, node.pages[g]))
        return found

    def _whole(self, node: Node) -> bool:
        """Whether it is a full page that the tree still has."""
        return node.parent is not None and len(node.key) == self._tree.page_bytes

    def _submit(self, items: Sequence[Item]) -> int:
        return self._store.submit_store([item.key for item in items], self._blocks.views(items))
