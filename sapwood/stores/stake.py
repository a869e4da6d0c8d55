"""Stores of KV as a stake: a request waits while its prefix arrives, and what is computed is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, perf_counter

from sapwood.base.errors import Lost
from sapwood.base.pages import Pager
from sapwood.base.plan import Part, Plan, Rows
from sapwood.base.request import Request
from sapwood.base.stake import Ready, Stake
from sapwood.cache import KVCache
from sapwood.stores.arrivals import Arrivals
from sapwood.stores.base import KVStore
from sapwood.stores.blocks import Blocks
from sapwood.stores.departures import Departures
from sapwood.stores.names import Names
from sapwood.stores.pace import PrefillRate

_TIDY_SECONDS = 0.005  # for a job of the store, while there is nothing else to do
_CLOSE_SECONDS = 2.0  # for all that are left


class StoreStake(Stake):
    """Moves pages between a `kv` cache and a `store`, through the blocks of a `pager`: one half of them on each way.

    Pages are stored once they have been found by `hits` requests, with 0 when they are computed, with None when they make way for
    others, and if what is stored is `lasting` also those that are on the device in the end.
    """

    def __init__(
        self,
        kv: KVCache,
        store: KVStore,
        pager: Pager,
        names: Names,
        *,
        hits: int | None = 0,
        lasting: bool = False,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._store, self._lasting = store, lasting
        self._prefill = PrefillRate(clock)
        counts = [len(blocks) for blocks in pager.blocks]
        halves = [count // 2 for count in counts]
        mine = Blocks(pager, [0] * len(counts), halves)
        self.departures = Departures(kv, store, pager, mine, names, hits=hits)
        self.arrivals = Arrivals(kv, store, pager, Blocks(pager, halves, counts), names, self._prefill)

    def ready(self, request: Request) -> Ready:
        self._poll()
        return self.arrivals.ready(request)

    def wait(self, seconds: float) -> None:
        self._store.wait(seconds)

    def enter(self, request: Request, number: int) -> bool:
        self.arrivals.forget(request)
        return True

    def parts(self, rows: Rows) -> Sequence[Part]:
        self._prefill.planned(rows)
        self.departures.overwritten()
        return ()

    def landed(self, plan: Plan) -> None:
        self._prefill.landed(plan)
        self._poll()
        self.departures.landed(plan.number)

    def forget(self, request: Request) -> None:
        self.arrivals.forget(request)

    def reset(self) -> None:
        self.departures.reset()
        self.arrivals.reset()
        self._prefill.reset()

    def emptied(self) -> None:
        self.departures.reset()
        self.arrivals.reset()

    def tidy(self) -> bool:
        self._poll()
        self.departures.go_on()
        if self.departures.busy:
            self._store.wait(_TIDY_SECONDS)
        return self.departures.busy

    def close(self) -> None:
        until = monotonic() + _CLOSE_SECONDS
        if self._lasting:
            self.departures.leave()
        with suppress(Lost):  # of a device that is, nothing is to be had
            while self.tidy() and monotonic() < until:
                pass
        self._store.close(max(0.1, until - monotonic()))

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        """Counters and seconds since the start."""
        counts, seconds = self._store.gauges()
        mine = {
            "restored_pages": self.arrivals.num_pages,
            "unrestored_pages": self.arrivals.num_failed,
            "unstored_pages": self.departures.num_lost,
        }
        return mine | counts, seconds

    def _poll(self) -> None:
        for ticket, good in self._store.poll():
            if not self.departures.stored(ticket, good):
                self.arrivals.loaded(ticket, good)
        self.arrivals.go_on()
