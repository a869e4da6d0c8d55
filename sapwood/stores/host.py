"""Pages in the host's memory, the ones that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np

from sapwood.base.pages import Bytes
from sapwood.stores.base import Key


class HostShelf:
    """Keeps the protocol `Shelf`, in at most `capacity` bytes. Memory is taken as it is needed and not given back before the end."""

    name = "host"

    def __init__(self, capacity: int) -> None:
        self.bytes_per_second = 0.0
        self._capacity = capacity
        self._used = 0
        self._pages: OrderedDict[Key, Bytes] = OrderedDict()  # least recently used first
        self._lock = Lock()  # held for no copy: readers and writers of pages are one thread

    def has(self, keys: Sequence[Key]) -> list[bool]:
        with self._lock:
            return [key in self._pages for key in keys]

    def put(self, key: Key, page: Bytes) -> bool:
        with self._lock:
            known = key in self._pages
            room = None if known else self._room(page.nbytes)
        if not known:
            if room is None:
                return False
            np.copyto(room, page)
            with self._lock:
                self._pages[key] = room
        return True

    def get(self, key: Key, page: Bytes) -> bool:
        with self._lock:
            kept = self._pages.get(key)
            if kept is None or kept.nbytes != page.nbytes:
                return False
            self._pages.move_to_end(key)
        np.copyto(page, kept)
        return True

    def touch(self, keys: Sequence[Key]) -> None:
        with self._lock:
            for key in keys:
                if key in self._pages:
                    self._pages.move_to_end(key)

    def delete(self, keys: Sequence[Key]) -> None:
        with self._lock:
            for key in keys:
                kept = self._pages.pop(key, None)
                self._used -= 0 if kept is None else kept.nbytes

    def close(self) -> None:
        with self._lock:
            self._pages.clear()
            self._used = 0

    def _room(self, size: int) -> Bytes | None:
        """Memory for a page, if need be that of others."""
        if size > self._capacity:
            return None
        while self._used + size > self._capacity:
            _, given_up = self._pages.popitem(last=False)
            if given_up.nbytes == size:
                return given_up
            self._used -= given_up.nbytes
        self._used += size
        return np.empty(size, np.uint8)
