"""A store that works in a thread of its own."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from sapwood.base.pages import Bytes
from sapwood.stores.base import Done, Key
from sapwood.stores.tiers import Tiers

log = logging.getLogger(__name__)


class ThreadedStore:
    """Keeps the protocol `KVStore` with tiers that take their time: jobs run one after another, loads before what is to be stored.

    Where a program ends without `close`, its last jobs are done first.
    """

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._tickets = itertools.count()
        self._loads: deque[Callable[[], None]] = deque()
        self._stores: deque[Callable[[], None]] = deque()
        self._over: deque[Done] = deque()
        self._news = Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kv-store")

    def lookup(self, keys: Sequence[Key]) -> list[bool]:
        return self._tiers.has(keys)

    def seconds(self, keys: Sequence[Key], num_bytes: int) -> float:
        return self._tiers.seconds(keys, num_bytes)

    def submit_store(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        return self._submit(self._stores, self._tiers.put, keys, pages)

    def submit_load(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        return self._submit(self._loads, self._tiers.get, keys, pages)

    def poll(self) -> list[Done]:
        self._news.clear()
        return [self._over.popleft() for _ in range(len(self._over))]

    def wait(self, seconds: float) -> None:
        self._news.wait(seconds)

    def touch(self, keys: Sequence[Key]) -> None:
        self._tiers.touch(keys)

    def delete(self, keys: Sequence[Key]) -> None:
        self._tiers.delete(keys)

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        tiers = self._tiers
        counts: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for shelf in tiers.shelves:
            name = shelf.name
            counts[f"store_hits_{name}"] = tiers.hits[name]
            counts |= {
                f"loaded_bytes_{name}": tiers.loaded_bytes[name],
                f"stored_bytes_{name}": tiers.stored_bytes[name],
            }
            seconds |= {
                f"load_seconds_{name}": tiers.load_seconds[name],
                f"store_seconds_{name}": tiers.store_seconds[name],
            }
        return counts, seconds

    def close(self, seconds: float) -> None:
        last = self._pool.submit(lambda: None)
        futures.wait([last], timeout=seconds)
        self._loads.clear()
        self._stores.clear()
        self._pool.shutdown(wait=last.done(), cancel_futures=True)
        if last.done():
            self._tiers.close()

    def _submit(
        self,
        jobs: deque[Callable[[], None]],
        move: Callable[[Key, Bytes], bool],
        keys: Sequence[Key],
        pages: Sequence[Bytes],
    ) -> int:
        ticket = next(self._tickets)

        def job() -> None:
            self._over.append(Done(ticket, [_tried(move, *one) for one in zip(keys, pages, strict=True)]))
            self._news.set()

        jobs.append(job)
        self._pool.submit(self._next)
        return ticket

    def _next(self) -> None:
        jobs = self._loads or self._stores
        if jobs:
            jobs.popleft()()


def _tried(move: Callable[[Key, Bytes], bool], key: Key, page: Bytes) -> bool:
    """A fault of a store costs the page and nothing else."""
    try:
        return move(key, page)
    except Exception:
        log.exception("a KV store failed; the page is computed, or not kept")
        return False
