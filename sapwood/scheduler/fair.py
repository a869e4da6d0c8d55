"""Tenants in turns: deficit round robin over tokens. Who asks for much delays nobody who asks for little.

Each tenant with requests in line has a turn in every round, and starts requests while it has credit. A turn gives it
QUANTUM tokens of credit, times its weight; the prompt tokens that a start has to compute cost it as many, and so do
tokens of output when they have been drawn. Credit may fall below zero: then it is made up for in later rounds.

Who comes into line keeps what credit it had and gets that of the rounds that it has missed, no more than two turns' worth
and no less than one turn's debt. If that leaves any, its turn is next: the others have had more than it has.

Slots are shared the same way: the first in line may take one of a tenant that has more of them for its weight.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from sapwood.base.request import Request
from sapwood.scheduler.waiting import Peek, Waiting, by_arrival, by_priority

QUANTUM = 2048


class Tenant:
    """Whose requests share a turn.

    Attributes:
        share: The credit of a turn.
        credit: Tokens that it may take.
        round: The last one whose credit it has.
        line: Its requests that wait, the first first.
        running: How many of them have slots.
    """

    __slots__ = ("credit", "line", "name", "round", "running", "share")

    def __init__(self, name: str, share: float) -> None:
        self.name = name
        self.share = self.credit = share
        self.round = 0
        self.line: list[Request] = []
        self.running = 0

    def copy(self) -> Tenant:
        """As far as turns are concerned."""
        other = Tenant(self.name, self.share)
        other.credit, other.round, other.line = self.credit, self.round, self.line.copy()
        return other

    def catch_up(self, round: int) -> None:
        """Have the credit of all rounds up to this one, within bounds: idle time is neither saved up nor held against it."""
        credit = self.credit + (round - self.round) * self.share
        self.credit, self.round = max(-self.share, min(2 * self.share, credit)), round


class Turns:
    """Those with somebody in line. The first has its turn, as long as it has credit."""

    def __init__(self) -> None:
        self.round = 0
        self.line: deque[Tenant] = deque()

    def copy(self) -> Turns:
        turns = Turns()
        turns.round = self.round
        turns.line.extend(tenant.copy() for tenant in self.line)
        return turns

    def __bool__(self) -> bool:
        return bool(self.line)

    def join(self, tenant: Tenant) -> None:
        """Somebody is in line of a tenant of whom nobody was."""
        tenant.catch_up(self.round)
        if tenant.credit > 0:
            self.line.appendleft(tenant)
        else:
            self.line.append(tenant)

    def next(self) -> Tenant:
        """Whose turn it is. Asking again says the same."""
        idle = min(int(-tenant.credit // tenant.share) for tenant in self.line)
        if idle > 0:  # rounds in which nobody would have a turn
            self.round += idle
            for tenant in self.line:
                tenant.credit, tenant.round = tenant.credit + idle * tenant.share, tenant.round + idle
        while (tenant := self.line[0]).credit <= 0:
            self.line.rotate(-1)
            tenant.credit, tenant.round = tenant.credit + tenant.share, tenant.round + 1
            self.round = max(self.round, tenant.round)
        return tenant

    def take(self, tenant: Tenant, cost: float) -> None:
        """The first of a tenant's requests starts."""
        tenant.credit -= cost
        del tenant.line[0]
        if not tenant.line:
            self.line.remove(tenant)


class Fair(Waiting):
    """The requests of each tenant by priority and arrival, and tenants in turns."""

    def __init__(self) -> None:
        super().__init__("fair")
        self._tenants: dict[str, Tenant] = {}
        self._turns = Turns()

    def __len__(self) -> int:
        return sum(len(tenant.line) for tenant in self._tenants.values())

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(tenant.line for tenant in self._turns.line)

    def add(self, request: Request) -> None:
        tenant = self._of(request)
        if not tenant.line:
            self._turns.join(tenant)
        insort(tenant.line, request, key=by_priority)
        if tenant.line[0] is request:
            self.version += 1

    def remove(self, request: Request) -> None:
        tenant = self._of(request)
        tenant.line.remove(request)
        if not tenant.line:
            self._turns.line.remove(tenant)
        self.version += 1

    def clear(self) -> None:
        for tenant in self._tenants.values():
            tenant.line.clear()
            tenant.running = 0
        self._turns.line.clear()
        self.version += 1

    def candidates(self, peek: Peek) -> Iterator[Request]:
        turns = self._turns.copy()
        while turns:
            tenant = turns.next()
            request = tenant.line[0]
            yield request  # what of it is cached is known when it has started
            turns.take(tenant, cost(request))

    def started(self, admitted: Sequence[Request]) -> None:
        for request in admitted:
            tenant = self._turns.next()
            assert tenant.line[0] is request, "they start in the order of candidates"
            self._turns.take(tenant, cost(request))
            tenant.running += 1
            request.charged = len(request.tokens)
        self.version += 1

    def left(self, request: Request, known: int) -> None:
        tenant = self._of(request)
        tenant.running -= 1
        tenant.credit -= known - request.charged
        request.charged = known

    def usurped(self, running: Callable[[], Sequence[Request]]) -> Request | None:
        if not self._turns:
            return None
        first = self._turns.next()
        most = max(self._tenants.values(), key=lambda tenant: tenant.running / tenant.share)
        if (first.running + 1) / first.share > (most.running - 1) / most.share:
            return None
        return max((one for one in running() if one.tenant == most.name), key=by_arrival, default=None)

    def _of(self, request: Request) -> Tenant:
        share = QUANTUM * request.weight
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            tenant = self._tenants[request.tenant] = Tenant(request.tenant, share)
            tenant.round = self._turns.round
        tenant.share = share
        return tenant


def cost(request: Request) -> int:
    """Tokens that a start has to compute and nobody has paid for."""
    return max(len(request.tokens) - max(request.charged, request.cached_tokens), 1)
