"""The waiting requests and the order in which they may start."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator

from sapwood.base.errors import ConfigError
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
    """

    def __init__(self, policy: str) -> None:
        if policy not in ("fcfs", "priority", "lpm"):
            raise ConfigError(f"--schedule-policy: unknown policy {policy!r}; choose fcfs, priority or lpm.")
        self.policy = policy
        self.rank = by_priority if policy == "priority" else by_arrival
        self._line: list[Request] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line)

    def add(self, request: Request) -> None:
        insort(self._line, request, key=self.rank)

    def remove(self, request: Request) -> None:
        self._line.remove(request)

    def clear(self) -> None:
        self._line.clear()

    def candidates(self, peek: Peek) -> list[Request]:
        """The requests in the order in which they should start; `peek` tells a request's cached tokens."""
        if self.policy == "fcfs":
            return self._line
        aged = [request for request in self._line if request.passed >= PATIENCE]
        rest = [request for request in self._line if request.passed < PATIENCE]
        if self.policy == "lpm":
            head = rest[:LOOK_AHEAD]
            cached = {id(request): peek(request) for request in head}
            rest = sorted(head, key=lambda request: -cached[id(request)]) + rest[LOOK_AHEAD:]
        return sorted(aged, key=by_arrival) + rest

    def started(self, admitted: list[Request]) -> None:
        """Take out those that start, and remember whom they overtook."""
        for request in admitted:
            self._line.remove(request)
            request.passed = 0
        if self.policy != "fcfs":
            for request in self._line:
                request.passed += sum(other.arrival > request.arrival for other in admitted)
