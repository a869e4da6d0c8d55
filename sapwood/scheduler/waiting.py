"""The waiting requests and the order in which they may start."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence

from sapwood.base.request import Request

PATIENCE = 64  # later arrivals that may go first before a request goes ahead of everything
LOOK_AHEAD = 256  # requests whose cached prefix the longest-prefix-first policy compares

Peek = Callable[[Request], int]


def by_arrival(request: Request) -> tuple[int, int]:
    return (0, request.arrival)


def by_priority(request: Request) -> tuple[int, int]:
    return (-request.priority, request.arrival)


class Waiting:
    """Requests in order of rank: arrival, or priority and then arrival.

    Under 'lpm' the order of starting is by longest cached prefix; under 'priority' and 'lpm' a request that `PATIENCE`
    later arrivals have overtaken goes first, so none starves.

    Attributes:
        version: Grows whenever another request may have become the first to start.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.rank = by_priority if policy == "priority" else by_arrival
        self.version = 0
        self._line: list[Request] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line)

    def add(self, request: Request) -> None:
        insort(self._line, request, key=self.rank)
        if self.policy == "lpm" or self._line[0] is request:
            self.version += 1

    def remove(self, request: Request) -> None:
        self._line.remove(request)
        self.version += 1

    def clear(self) -> None:
        self._line.clear()
        self.version += 1

    def candidates(self, peek: Peek) -> Iterable[Request]:
        """The requests in the order in which they should start; `peek` tells a request's cached tokens. What follows one may
        be asked for when that one has a slot."""
        if self.policy == "fcfs":
            return self._line
        aged = [request for request in self._line if request.passed >= PATIENCE]
        rest = [request for request in self._line if request.passed < PATIENCE] if aged else self._line
        if self.policy == "lpm":
            head = rest[:LOOK_AHEAD]
            cached = {id(request): peek(request) for request in head}
            rest = sorted(head, key=lambda request: -cached[id(request)]) + rest[LOOK_AHEAD:]
        return sorted(aged, key=by_arrival) + rest if aged else rest

    def started(self, admitted: Sequence[Request]) -> None:
        """Take out those that start, the first of `candidates`, and remember whom they overtook."""
        gone = {request.id for request in admitted}
        self._line = [request for request in self._line if request.id not in gone]
        self.version += 1
        for request in admitted:
            request.passed = 0
        if self.policy != "fcfs":
            arrivals = sorted(request.arrival for request in admitted)
            for request in self._line:
                request.passed += len(arrivals) - bisect_right(arrivals, request.arrival)

    def left(self, request: Request, known: int) -> None:
        """A request that had started leaves its slot, with so many known tokens."""

    def usurped(self, running: Callable[[], Sequence[Request]]) -> Request | None:
        """Which of those that run should give way to the first in line, which cannot start beside them; None: it waits."""
        return None
