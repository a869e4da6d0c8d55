"""The side that goes on with prompts: a request waits until what another engine computes of its prompt is here, as far as it comes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from time import monotonic

from sapwood.base.handoff import Fetch
from sapwood.base.pages import Pager
from sapwood.base.plan import Plan
from sapwood.base.request import Request
from sapwood.base.stake import LATER, NOW, Ready, Stake
from sapwood.cache import KVCache
from sapwood.stores.arrivals import Arrivals
from sapwood.stores.base import Key
from sapwood.stores.blocks import Blocks
from sapwood.stores.handoff.peers import PeerStore, Ticket
from sapwood.stores.handoff.transfer import TransferError
from sapwood.stores.handoff.wire import Found
from sapwood.stores.names import Names, key
from sapwood.stores.pace import PrefillRate

_AGAIN_SECONDS = 0.005  # between two questions where the rest of a prompt is
_AGAIN_PAGE_SECONDS = 5e-6  # and so much for each page that is asked about, which costs both sides time
_EARLY_SECONDS = 5.0  # that a ticket may be unknown of which both sides hear at the same time


@dataclass(eq=False)
class _Going:
    """A request that has not started; `missing` are the pages whose place is not known yet. It is given up at `until`, unless something comes."""

    ticket: Ticket
    early: bool
    missing: list[Key]
    began: float
    until: float
    asked: Future[Found] | None = None
    again: float = 0.0
    news: bool = False  # there are pages that nobody has brought yet
    whole: bool = False  # nothing more comes
    failed: bool = False  # it was not told of all that there might have been
    over: bool = False


class FetchStake(Stake):
    """Brings prefixes of requests that say where they are. What does not come, for whatever reason, is computed.

    Pages come as they are computed, so that the last of them is on its way when the prompt's last step has landed. For `seconds` a
    request waits without any coming.

    Attributes:
        counts: Prompts that were asked for (`fetches`), and those of which the peer could not be asked, knew nothing, or did not tell in time (`fetches_failed`).
        waited: Seconds that requests have waited.
    """

    def __init__(
        self,
        kv: KVCache,
        store: PeerStore,
        pager: Pager,
        names: Names,
        *,
        seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        counts = [len(blocks) for blocks in pager.blocks]
        self._kv, self._store, self._names = kv, store, names
        self._seconds, self._clock = seconds, clock
        self._arrivals = Arrivals(kv, store, pager, Blocks(pager, [0] * len(counts), counts), names, PrefillRate())
        self._going: dict[int, _Going] = {}
        self.counts = {"fetches": 0, "fetches_failed": 0}
        self.waited = 0.0

    def concerns(self, request: Request) -> bool:
        return isinstance(request.handoff, Fetch)

    def ready(self, request: Request) -> Ready:
        self._poll()
        going = self._going.get(request.id) or self._begin(request)
        if going.over:
            return NOW
        if going.asked is not None:
            if not going.asked.done():
                return LATER
            self._take(going, going.asked)
        if going.news and self._arrivals.ready(request) is LATER:  # which goes through the whole prompt
            return LATER
        going.news, now = False, self._clock()
        if not going.missing or going.whole or now > going.until:
            going.failed |= now > going.until
            self._end(going)
            return NOW
        self._arrivals.forget(request)  # what comes next begins where this ends
        if now >= going.again:
            going.asked = self._store.find(going.ticket, going.missing)
        return LATER

    def wait(self, seconds: float) -> None:
        self._store.wait(seconds)

    def enter(self, request: Request, number: int) -> bool:
        self._arrivals.forget(request)
        self._going.pop(request.id, None)
        return True

    def forget(self, request: Request) -> None:
        self._arrivals.forget(request)
        if (going := self._going.pop(request.id, None)) is not None and not going.over:
            self._end(going)

    def landed(self, plan: Plan) -> None:
        self._poll()

    def reset(self) -> None:
        self._arrivals.reset()
        waiting = [going for going in self._going.values() if not going.over]
        self._going.clear()
        for going in waiting:
            self._end(going)

    def emptied(self) -> None:
        self._arrivals.reset()

    def tidy(self) -> bool:
        self._poll()
        return False

    def close(self) -> None:
        self._store.close(0.0)

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        """Counters and seconds since the start."""
        counts, seconds = self._store.gauges()
        mine = {"fetched_pages": self._arrivals.num_pages, "unfetched_pages": self._arrivals.num_failed}
        return self.counts | mine | counts, seconds | {"fetch_seconds": self.waited}

    def _begin(self, request: Request) -> _Going:
        kv, fetch, now = self._kv, request.handoff, self._clock()
        assert isinstance(fetch, Fetch)
        space, most = kv.namespace(request).encode(), kv.max_match(request)
        names = islice(self._names.along(space, request.tokens.tobytes(), kv.tree.page_bytes), most)
        keys = [key(name, group) for name in names for group in range(len(kv.groups))]
        going = _Going(Ticket.of(fetch), fetch.early, keys, now, now + self._seconds)
        self._going[request.id] = going
        self.counts["fetches"] += 1
        return going

    def _take(self, going: _Going, asked: Future[Found]) -> None:
        """What the peer says of what is missing."""
        going.asked, now = None, self._clock()
        going.again = now + _AGAIN_SECONDS + _AGAIN_PAGE_SECONDS * len(going.missing)
        try:
            found = asked.result()
        except TransferError:
            going.whole = going.failed = True
            return
        there = {key: block for key, block in zip(going.missing, found.blocks, strict=True) if block >= 0}
        if there:
            going.news = True
            self._store.note(going.ticket, there)
            going.missing = [key for key in going.missing if key not in there]
            going.until = now + self._seconds
        early = going.early and now < going.began + _EARLY_SECONDS
        going.whole = found.state == "closed" or (found.state == "unknown" and not early)
        going.early = going.early and found.state == "unknown"
        going.failed = going.whole and found.state == "unknown"

    def _end(self, going: _Going) -> None:
        """It waits no more; the peer may have its blocks back, unless another request of the same ticket waits."""
        going.over = True
        self.counts["fetches_failed"] += going.failed
        self.waited += self._clock() - going.began
        if not any(other.ticket == going.ticket and not other.over for other in self._going.values()):
            self._store.let_go(going.ticket)

    def _poll(self) -> None:
        for number, good in self._store.poll():
            self._arrivals.loaded(number, good)
        self._arrivals.go_on()
