"""What is in the cache, told to routers of a fleet: blocks that were stored and removed, as vLLM, SGLang, llm-d and Dynamo tell and read it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import time
from typing import Any, Protocol

import msgspec
import numpy as np

from sapwood.base.plan import Plan
from sapwood.base.request import namespace_of
from sapwood.base.stake import Stake
from sapwood.cache import KVCache
from sapwood.cache.tree import Node
from sapwood.stores.names import Names

MEDIUM = "GPU"  # what routers call the device's own memory, whatever it is
_SHARED = namespace_of("", "").encode()


@dataclass
class Stored:
    """Blocks of one path, each behind the one before; the first one behind `parent`."""

    hashes: list[int]
    parent: int | None
    tokens: list[int]
    block_size: int


@dataclass
class Removed:
    hashes: list[int] = field(default_factory=list)


@dataclass
class Cleared:
    """There is nothing any more."""


Event = Stored | Removed | Cleared


class Publisher(Protocol):
    def publish(self, payload: bytes) -> None:
        """Have it sent, and kept for a while for those who missed it. Does not wait."""
        ...

    def close(self) -> None: ...


def payload(events: list[Event], *, positional: bool, replica: int = 0, clock: Callable[[], float] = time) -> bytes:
    """[time, events, replica] in msgpack. Events are maps, or in the older form arrays with the type first."""
    told = [_positional(event) if positional else _map(event) for event in events]
    return msgspec.msgpack.encode([clock(), told, replica])


def _map(event: Event) -> dict[str, Any]:
    match event:
        case Stored(hashes, parent, tokens, size):
            return {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": parent,
                "token_ids": tokens,
                "block_size": size,
                "lora_id": None,
                "medium": MEDIUM,
                "lora_name": None,
            }
        case Removed(hashes):
            return {"type": "BlockRemoved", "block_hashes": hashes, "medium": MEDIUM}
        case Cleared():
            return {"type": "AllBlocksCleared"}


def _positional(event: Event) -> list[Any]:
    return list(_map(event).values())


class Events(Stake):
    """Tells a publisher of full pages when they are computed and when they are given up. Of pages under a salt nothing is told: who
    routes by tokens would take them for everybody's. A block's hash is the beginning of its page's name. `replica` is which of
    several engines this is."""

    def __init__(
        self, kv: KVCache, publisher: Publisher, names: Names, *, positional: bool = False, replica: int = 0
    ) -> None:
        self._page_bytes, self._page_size = kv.tree.page_bytes, kv.page_size
        self._publisher, self._names, self._as_arrays, self._replica = publisher, names, positional, replica
        self._noted: deque[Node] = deque()
        self._told: set[int] = set()
        self._removed: list[int] = []
        kv.tree.watchers.append(self)
        self._publish([Cleared()])  # of an engine that was here before

    def grown(self, node: Node) -> None:
        self._noted.append(node)

    def found(self, node: Node) -> None:
        pass

    def evicted(self, node: Node, group: int) -> None:
        pass  # what is cut is told of

    def overwritten(self) -> None:
        pass

    def cut(self, node: Node) -> None:
        if node.name is not None and (number := _number(node.name)) in self._told:
            self._told.remove(number)
            self._removed.append(number)

    def landed(self, plan: Plan) -> None:
        if self._removed or (self._noted and self._noted[0].born <= plan.number):
            self._tell(plan.number)

    def tidy(self) -> bool:
        """Pages that were given up while nothing ran."""
        if self._removed:
            self._tell(-1)
        return False

    def reset(self) -> None:
        self._noted.clear()

    def close(self) -> None:
        self._publisher.close()

    def _tell(self, number: int) -> None:
        """What there is to tell up to that plan. What was removed may be stored again, and is told first."""
        events: list[Event] = [Removed(self._removed)] if self._removed else []
        self._removed = []
        last: Node | None = None
        while self._noted and self._noted[0].born <= number:
            node = self._noted.popleft()
            if not self._counts(node):
                continue
            name = _number(self._names.of(node))
            if name in self._told:
                continue
            self._told.add(name)
            tokens = np.frombuffer(node.key, np.int32).tolist()
            known = events[-1] if events else None
            if isinstance(known, Stored) and node.parent is last:
                known.hashes.append(name)
                known.tokens += tokens
            else:
                events.append(Stored([name], self._above(node), tokens, self._page_size))
            last = node
        if events:
            self._publish(events)

    def _counts(self, node: Node) -> bool:
        return node.parent is not None and len(node.key) == self._page_bytes and node.root.key == _SHARED

    def _above(self, node: Node) -> int | None:
        parent = node.parent
        return None if parent is None or parent.parent is None else _number(self._names.of(parent))

    def _publish(self, events: list[Event]) -> None:
        self._publisher.publish(payload(events, positional=self._as_arrays, replica=self._replica))


def _number(name: bytes) -> int:
    return int.from_bytes(name[:8], "little")
