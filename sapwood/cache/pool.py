"""Page numbers of one KV group: which are free."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """A stack of free page numbers. Page 0 is never handed out: padding rows write there."""

    __slots__ = ("free", "num_pages")

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.free = list(range(num_pages - 1, 0, -1))

    @property
    def capacity(self) -> int:
        """Pages that requests can have in all."""
        return self.num_pages - 1

    def allocate(self, count: int) -> list[int]:
        """So many pages, at least one; there must be as many."""
        pages = self.free[-count:][::-1]
        del self.free[-count:]
        return pages

    def give(self, page: int) -> None:
        self.free.append(page)

    def reset_free(self, used: Iterable[int]) -> int:
        """Make the free pages exactly those not in `used`; return how many entries were wrong."""
        right = set(range(1, self.num_pages)) - set(used)
        wrong = len(right.symmetric_difference(self.free)) + len(self.free) - len(set(self.free))
        if wrong:
            self.free = sorted(right, reverse=True)
        return wrong
