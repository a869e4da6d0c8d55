"""What changes in the page tables of the device with a plan."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sapwood.base.plan import Ints, PageChange

_SLOT_SHIFT = 32


class Changes:
    """Entries of page tables, per group: the last word on an entry counts."""

    def __init__(self, num_groups: int) -> None:
        # Slot and index packed into one key -> page.
        self._entries: list[dict[int, int]] = [{} for _ in range(num_groups)]

    def put(self, group: int, slot: int, first: int, pages: Iterable[int]) -> None:
        """Pages of a slot, from index `first` on."""
        key = slot << _SLOT_SHIFT | first
        self._entries[group].update(enumerate(pages, key))

    def put_each(self, group: int, slots: Ints, indices: Ints, pages: Iterable[int]) -> None:
        """One page of each of the slots."""
        keys = slots.astype(np.int64) << _SLOT_SHIFT | indices
        self._entries[group].update(zip(keys.tolist(), pages, strict=True))

    def take(self) -> tuple[PageChange, ...] | None:
        """All there are, per group; None if there are none."""
        if not any(self._entries):
            return None
        taken = tuple(_page_change(entries) for entries in self._entries)
        for entries in self._entries:
            entries.clear()
        return taken


def _page_change(entries: dict[int, int]) -> PageChange:
    keys = np.fromiter(entries.keys(), dtype=np.int64, count=len(entries))
    pages = np.fromiter(entries.values(), dtype=np.int32, count=len(entries))
    return PageChange((keys >> _SLOT_SHIFT).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32), pages)
