"""Which beginnings of prompts servers have in their caches, as these tell it themselves: KV events of vLLM, SGLang and Sapwood.

Each server names its blocks in its own way. Here a block is a number of its tokens and of all before them, so that what one server
holds can be found for a prompt, and compared with others. A prompt is looked for once for each size of blocks that there is.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

BYTES = 4
"""Of a token, as `packed` has it."""

_DEVICE = "gpu"  # the memory that counts: what is elsewhere is not there at once
_FORMS = {  # the fields of events that are arrays, in their order
    "BlockStored": "type block_hashes parent_block_hash token_ids block_size lora_id medium lora_name extra_keys".split(),
    "BlockRemoved": "type block_hashes medium".split(),
    "AllBlocksCleared": ["type"],
}

Hash = int | bytes
_Cache = tuple[str, int]  # a server, and which of its engines


class Unreadable(Exception):
    """A payload that is none of these events."""


def packed(tokens: Iterable[int]) -> bytes:
    """Token ids as `KVIndex.held` wants them."""
    return array("i", tokens).tobytes()


@dataclass
class _Books:
    """What one engine of a server has told: the number here of each of its blocks, and how many blocks have that number.

    Attributes:
        size: Tokens of a block.
        adapters: Names of adapters that it has blocks of.
        whole: Nothing that it has told was missed.
    """

    numbers: dict[Hash, int] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)
    size: int = 0
    adapters: set[str] = field(default_factory=set)
    whole: bool = False


class KVIndex:
    """All servers that tell of their caches, by name. One of several engines has a cache for each, told of by the engine's `rank`; a prompt
    goes to the one of them that has most of it."""

    def __init__(self) -> None:
        self._books: dict[str, dict[int, _Books]] = {}
        self._holders: dict[int, set[_Cache]] = {}

    def follow(self, server: str, rank: int = 0) -> None:
        """It is going to tell."""
        self._books.setdefault(server, {}).setdefault(rank, _Books())

    def forget(self, server: str, rank: int = 0, *, wholly: bool = True) -> None:
        """Nothing is known of it any more; `wholly`: nor is it going to tell."""
        ranks = self._books.get(server, {})
        if (books := ranks.pop(rank, None)) is None:
            return
        self._clear((server, rank), books)
        if not wholly:
            ranks[rank] = _Books()
        elif not ranks:
            del self._books[server]

    def complete(self, server: str, rank: int = 0) -> None:
        """It has told all that there is, from the beginning."""
        self._books[server][rank].whole = True

    def follows(self, server: str, rank: int | None = None) -> bool:
        """Whether it tells, or that engine of it."""
        return server in self._books if rank is None else rank in self._books.get(server, {})

    def whole(self, server: str) -> bool:
        """Whether all is known of its caches. Of one that has told of no block that is not so: its prompts may be of those that are not told of."""
        ranks = self._books.get(server, {}).values()
        return bool(ranks) and all(books.whole and bool(books.numbers) for books in ranks)

    def num_blocks(self) -> dict[str, int]:
        """How many blocks are known of each server."""
        return {server: sum(len(books.numbers) for books in ranks.values()) for server, ranks in self._books.items()}

    def hear(self, server: str, payload: bytes, rank: int = 0) -> int:
        """Events of a server, in msgpack: [time, events, ...], each a map or an array. Returns how many. Raises Unreadable."""
        books = self._books[server][rank]
        try:
            _, events, *_ = msgspec.msgpack.decode(payload)
            for event in events:
                self._take((server, rank), books, event if isinstance(event, dict) else _by_name(event))
        except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        return len(events)

    def held(self, tokens: bytes, model: str | None, servers: Sequence[str]) -> dict[str, int]:
        """How many tokens of a prompt's beginning (`packed`) each server has, of those that tell."""
        found = {server: 0 for server in servers if server in self._books}
        groups: dict[tuple[int, str], set[_Cache]] = {}
        for server in found:
            for rank, books in self._books[server].items():
                adapter = model if model is not None and model in books.adapters else ""
                if books.size:
                    groups.setdefault((books.size, adapter), set()).add((server, rank))
        for (size, adapter), left in groups.items():
            number, step = _root(size, adapter), size * BYTES
            for start in range(0, len(tokens) - step + 1, step):
                number = hash((number, tokens[start : start + step]))
                left &= self._holders.get(number, frozenset())
                if not left:
                    break
                for server, _ in left:
                    found[server] = max(found[server], start // BYTES + size)
        return found

    def _take(self, cache: _Cache, books: _Books, event: dict[str, Any]) -> None:
        if str(event.get("medium") or _DEVICE).lower() != _DEVICE:
            return
        match event["type"]:
            case "BlockStored":
                self._store(cache, books, event)
            case "BlockRemoved":
                for name in event["block_hashes"]:
                    self._remove(cache, books, name)
            case "AllBlocksCleared":
                self._clear(cache, books)
            case other:
                raise Unreadable(f"there is no event {other!r}")

    def _store(self, cache: _Cache, books: _Books, event: dict[str, Any]) -> None:
        if any(event.get("extra_keys") or ()):
            return  # of pictures and salts: tokens alone do not say what is in them
        size, adapter, parent = event["block_size"], event.get("lora_name") or "", event["parent_block_hash"]
        if size != books.size:
            if books.numbers:
                return  # another group of layers
            books.size = size
        if adapter:
            books.adapters.add(adapter)
        number = _root(size, adapter) if parent is None else books.numbers.get(parent)
        if number is None:
            return  # what is before it is not known
        tokens, step = packed(event["token_ids"]), size * BYTES
        for place, name in enumerate(event["block_hashes"]):
            number = hash((number, tokens[place * step : (place + 1) * step]))
            if name not in books.numbers:
                books.numbers[name] = number
                books.counts[number] += 1
                self._holders.setdefault(number, set()).add(cache)

    def _remove(self, cache: _Cache, books: _Books, name: Hash) -> None:
        number = books.numbers.pop(name, None)
        if number is None:
            return
        books.counts[number] -= 1
        if not books.counts[number]:
            del books.counts[number]
            self._drop(number, cache)

    def _clear(self, cache: _Cache, books: _Books) -> None:
        for number in books.counts:
            self._drop(number, cache)
        books.numbers.clear()
        books.counts.clear()

    def _drop(self, number: int, cache: _Cache) -> None:
        holders = self._holders[number]
        holders.discard(cache)
        if not holders:
            del self._holders[number]


def _root(size: int, adapter: str) -> int:
    return hash((size, adapter))


def _by_name(event: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_FORMS[event[0]], event, strict=False))
