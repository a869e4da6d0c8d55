"""Requests that wait until a server has room for them: tenants in turns, by weight.

Turns are those of deficit round robin (Shreedhar and Varghese, 1995): with each round a tenant gains tokens by its weight, and its requests
go while it has as many as they are likely to cost. Rounds in which nobody could go are not walked but counted.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from sapwood.base.errors import LimitReached
from sapwood.route.metrics import Metrics

_GAIN = 1024.0  # tokens of a round, for a weight of 1
_SHARE = 0.2  # of the last wait between two that went, in their mean
_LONGEST = 60.0  # seconds after which somebody is told to try again

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(eq=False)
class Waiter(Generic[T]):
    """A request that waits.

    Attributes:
        kind: Requests of the same may go to the same servers.
        cost: Tokens, about.
        size: Bytes that are kept while it waits.
        fits: Whether it could go now.
        take: Have it go now, which it could.
    """

    kind: Hashable
    cost: float
    fits: Callable[[], bool]
    take: Callable[[], T]
    size: int = 0
    number: int = 0
    turn: asyncio.Future[T] | None = None


@dataclass(eq=False)
class _Tenant(Generic[T]):
    """Those of a tenant, by kind and in their order, and the tokens that it has gained."""

    name: str
    weight: float
    has: float = 0.0
    waiting: dict[Hashable, deque[Waiter[T]]] = field(default_factory=dict)

    def first(self, kinds: set[Hashable]) -> Waiter[T] | None:
        """Who has waited longest of those that may go."""
        there = [line[0] for kind, line in self.waiting.items() if kind in kinds]
        return min(there, key=lambda one: one.number, default=None)

    def rounds(self, cost: float) -> int:
        """How many it takes until it has so much; one at least."""
        return max(1, math.ceil((cost - self.has) / (_GAIN * self.weight)))

    def gain(self, rounds: int) -> None:
        self.has += rounds * _GAIN * self.weight


class Line(Generic[T]):
    """All who wait. `pump` is called whenever somebody may have room."""

    def __init__(self, metrics: Metrics, clock: Clock = monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._ring: deque[_Tenant[T]] = deque()  # whose turn it is comes first
        self._turn: _Tenant[T] | None = None
        self._tenants: dict[str, _Tenant[T]] = {}
        self._waiting = self._numbers = self._bytes = 0
        self._went = 0.0  # when the last one did, while others waited
        self._pace = 0.0  # mean seconds between two that go
        metrics.watch_line(lambda: self._waiting)

    def __len__(self) -> int:
        return self._waiting

    async def wait(
        self,
        tenant: str,
        weight: float,
        waiter: Waiter[T],
        *,
        most: int,
        most_bytes: int,
        seconds: float,
        undo: Callable[[T], None],
    ) -> T:
        """What its `take` gives when its turn comes; `undo` is called for that where nobody is left who wants it. Raises LimitReached when
        `most` are waiting already, or others with so many bytes together with it, or after that many seconds."""
        began = self._clock()
        turn = waiter.turn = asyncio.get_running_loop().create_future()
        self._join(tenant, weight, waiter)
        self.pump()
        if not turn.done() and self._waiting > most:
            self._leave(tenant, waiter)
            raise self._refusal("full", f"{most} requests are waiting for a server already, which is the most.")
        if not turn.done() and self._bytes > most_bytes and self._waiting > 1:
            self._leave(tenant, waiter)
            raise self._refusal(
                "full", f"Requests of {most_bytes} bytes are waiting for a server already, which is the most."
            )
        try:
            async with asyncio.timeout(seconds):
                found: T = await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                undo(turn.result())
            else:
                self._leave(tenant, waiter)
            if isinstance(error, TimeoutError):
                raise self._refusal("long", f"No server had room for {seconds:g} s.") from None
            raise
        self._metrics.waited(self._clock() - began)
        return found

    def kinds(self) -> dict[Hashable, int]:
        """How many wait, by kind."""
        found: dict[Hashable, int] = {}
        for tenant in self._ring:
            for kind, line in tenant.waiting.items():
                found[kind] = found.get(kind, 0) + len(line)
        return found

    def pump(self) -> None:
        """Let those go who can, in their order."""
        while self._waiting:
            kinds = {kind for kind, one in self._kinds() if one.fits()}
            if not kinds:
                return
            tenant, waiter = self._next(kinds)
            self._leave(tenant.name, waiter)
            assert waiter.turn is not None
            if waiter.turn.done():
                continue  # it was cancelled, and has not left yet
            tenant.has = tenant.has - waiter.cost if tenant.waiting else 0.0
            now = self._clock()
            if self._went and self._waiting:
                self._pace += _SHARE * (now - self._went - self._pace)
            self._went = now if self._waiting else 0.0
            waiter.turn.set_result(waiter.take())

    def _kinds(self) -> Iterator[tuple[Hashable, Waiter[T]]]:
        """One of each."""
        seen: set[Hashable] = set()
        for tenant in self._ring:
            for kind, line in tenant.waiting.items():
                if kind not in seen:
                    seen.add(kind)
                    yield kind, line[0]

    def _next(self, kinds: set[Hashable]) -> tuple[_Tenant[T], Waiter[T]]:
        """Whose turn it is, of those that may go."""
        now = self._ring[0]
        if now is self._turn:  # else that one has gone, and the next has gained nothing yet
            if (first := now.first(kinds)) is not None and now.has >= first.cost:
                return now, first
            self._ring.rotate(-1)
        there = [(place, one, head) for place, one in enumerate(self._ring) if (head := one.first(kinds)) is not None]
        rounds, last = min((one.rounds(head.cost), place) for place, one, head in there)
        for place, one, _ in there:
            one.gain(rounds if place <= last else rounds - 1)
        self._ring.rotate(-last)
        self._turn = self._ring[0]
        return next((one, head) for place, one, head in there if place == last)

    def _join(self, name: str, weight: float, waiter: Waiter[T]) -> None:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _Tenant(name, weight)
            self._ring.append(tenant)
        tenant.weight = weight
        self._numbers += 1
        waiter.number = self._numbers
        tenant.waiting.setdefault(waiter.kind, deque()).append(waiter)
        self._waiting += 1
        self._bytes += waiter.size

    def _leave(self, name: str, waiter: Waiter[T]) -> None:
        """Have it wait no longer, if it does."""
        if not waiter.number:
            return
        tenant, waiter.number = self._tenants[name], 0
        line = tenant.waiting[waiter.kind]
        line.remove(waiter)
        self._waiting -= 1
        self._bytes -= waiter.size
        if not line:
            del tenant.waiting[waiter.kind]
        if not tenant.waiting:
            del self._tenants[name]
            self._ring.remove(tenant)

    def _refusal(self, why: str, message: str) -> LimitReached:
        self._metrics.turned_away(why)
        seconds = min(max(self._waiting * self._pace, 1.0), _LONGEST)
        return LimitReached(f"{message} Try again in {math.ceil(seconds)} s.", retry_after=seconds)
