"""Which pages wait in blocks of host memory for whom, and until when.

    ticket ── pages that its prompt has ── a block each, shared by tickets whose prompts begin alike

A block is given to other pages when no ticket has it any more: when its pages were fetched, its time is over, or who fetched them has hung up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from sapwood.stores.base import Key
from sapwood.stores.handoff.wire import State

log = logging.getLogger(__name__)

_FOREVER = float("inf")


@dataclass(eq=False)
class _Kept:
    """A page: where it is, whether it is there yet, and how many tickets have it."""

    group: int
    block: int
    ready: bool = False
    holders: int = 0


@dataclass(eq=False)
class _Ticket:
    """`going` requests that compute for it have not ended."""

    going: int = 0
    until: float = _FOREVER
    keys: dict[Key, None] = field(default_factory=dict)


class Book:
    """Keeps account of `num_blocks` of each group, for `seconds` from when a ticket was last asked about. The engine's thread and those of
    peers call.

    Attributes:
        counts: Pages that were offered (`offered_pages`), and those for which there was no room (`unoffered_pages`); prompts that were
            offered (`offered`), of which a peer has said that it has what it needs (`taken`), and whose time was over before (`expired`).
    """

    def __init__(self, num_blocks: Sequence[int], *, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._free = [list(range(count)) for count in num_blocks]
        self._seconds, self._clock = seconds, clock
        self._kept: dict[Key, _Kept] = {}
        self._tickets: dict[str, _Ticket] = {}
        self._lock = Lock()
        self.counts = dict.fromkeys(("offered", "taken", "expired", "offered_pages", "unoffered_pages"), 0)

    # -- who computes ---------------------------------------------------------------------------------------------

    def open(self, ticket: str) -> None:
        """A request computes for it."""
        with self._lock:
            one = self._tickets.setdefault(ticket, _Ticket())
            one.going, one.until = one.going + 1, _FOREVER
            self.counts["offered"] += 1

    def close(self, ticket: str) -> None:
        """A request that computed for it has ended: nothing more comes of that."""
        with self._lock:
            if (one := self._tickets.get(ticket)) is not None and one.going:
                one.going -= 1
                self._renew(one)

    def put(self, ticket: str, key: Key, group: int) -> int | None:
        """The block that a page is to be copied to; None if it need not be, there is no room for it, or nobody computes for the ticket."""
        with self._lock:
            one = self._tickets.get(ticket)
            if one is None or not one.going or key in one.keys:
                return None
            kept, new = self._kept.get(key), None
            if kept is None:
                if not self._free[group]:
                    self._expire()
                if not self._free[group]:
                    self.counts["unoffered_pages"] += 1
                    return None
                new = self._free[group].pop()
                kept = self._kept[key] = _Kept(group, new)
            kept.holders += 1
            one.keys[key] = None
            self.counts["offered_pages"] += 1
            return new

    def ready(self, keys: Iterable[Key]) -> None:
        """What was to be copied is there."""
        with self._lock:
            for key in keys:
                kept = self._kept[key]
                kept.ready = True
                self._drop(key, kept)

    def tidy(self) -> None:
        """Give back what nobody has asked for in its time."""
        with self._lock:
            self._expire()

    def reset(self) -> None:
        """No request computes any more."""
        with self._lock:
            for one in self._tickets.values():
                one.going = 0
                self._renew(one)

    @property
    def num_held(self) -> int:
        """Blocks that are not free."""
        return len(self._kept)

    # -- who goes on ----------------------------------------------------------------------------------------------

    def find(self, ticket: str, keys: Sequence[Key]) -> tuple[list[int], State]:
        """The block of each page, -1 where it is not there (yet), and what is to be expected of the ticket."""
        with self._lock:
            one = self._live(ticket)
            if one is None:
                return [-1] * len(keys), "unknown"
            found = [kept.block if key in one.keys and (kept := self._kept[key]).ready else -1 for key in keys]
            moving = any(not self._kept[key].ready for key in one.keys)
            return found, "open" if one.going or moving else "closed"

    def hold(self, ticket: str) -> bool:
        """Whether the ticket is there still, so that none of its blocks has been given to others."""
        with self._lock:
            return self._live(ticket) is not None

    def let_go(self, ticket: str, *, taken: bool) -> None:
        """Nobody will ask for it any more: its pages were `taken`, or who asked has gone."""
        with self._lock:
            if (one := self._tickets.pop(ticket, None)) is not None:
                self.counts["taken"] += taken
                self._give_back(one)

    # -- with the lock --------------------------------------------------------------------------------------------

    def _live(self, ticket: str) -> _Ticket | None:
        """The ticket, for some time more; None if its time is over."""
        one = self._tickets.get(ticket)
        if one is None or one.until < self._clock():
            return None
        self._renew(one)
        return one

    def _renew(self, one: _Ticket) -> None:
        one.until = _FOREVER if one.going else self._clock() + self._seconds

    def _expire(self) -> None:
        now = self._clock()
        for name in [name for name, one in self._tickets.items() if one.until < now]:
            self.counts["expired"] += 1
            log.warning("a prompt that was computed for another engine was not fetched in %g s", self._seconds)
            self._give_back(self._tickets.pop(name))

    def _give_back(self, one: _Ticket) -> None:
        for key in one.keys:
            kept = self._kept[key]
            kept.holders -= 1
            self._drop(key, kept)

    def _drop(self, key: Key, kept: _Kept) -> None:
        """Free its block if nobody has it, and nothing is on its way there."""
        if kept.ready and not kept.holders:
            del self._kept[key]
            self._free[kept.group].append(kept.block)
