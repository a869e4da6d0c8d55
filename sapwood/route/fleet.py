"""What the router knows of the servers: what they serve, how much they have to do, and whether they can be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

from sapwood.route.table import Server, Table

_PATIENCE = 3  # failures in a row
_SHORTEST_REST, _LONGEST_REST = 1.0, 30.0  # seconds

Clock = Callable[[], float]


class State(StrEnum):
    READY = "ready"
    RESTING = "resting"  # it has failed, and is left alone for a while
    TRIED = "tried"  # it has rested; one request at a time is a trial
    DRAINING = "draining"  # it gets nothing new
    GONE = "gone"  # it does not answer


@dataclass(eq=False)
class Replica:
    """One server at one address.

    Attributes:
        running: Requests that were sent to it and are not answered to the end.
        models: What it serves; None until it has said so.
        alive: Whether it answered when it was last looked at.
        busy_until: When it wants to be asked again, where it said that it has too much to do.
    """

    server: Server
    url: str
    name: str
    clock: Clock = monotonic
    running: int = 0
    models: frozenset[str] | None = None
    alive: bool = True
    draining: bool = False
    busy_until: float = 0.0
    _failures: int = 0
    _rests_until: float = 0.0

    @property
    def state(self) -> State:
        if self.draining:
            return State.DRAINING
        if not self.alive:
            return State.GONE
        if self._failures < _PATIENCE:
            return State.READY
        return State.RESTING if self.clock() < self._rests_until else State.TRIED

    @property
    def load(self) -> float:
        """Requests that run there, by its weight."""
        return self.running / self.server.weight

    def can_take(self) -> bool:
        """Whether it may be sent a request now."""
        state = self.state
        return state is State.READY or (state is State.TRIED and not self.running)

    def serves(self, model: str) -> bool:
        return self.models is not None and model in self.models

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        """It did not answer as it should. Each failure of one that is tried makes its rest twice as long."""
        self._failures += 1
        if self._failures >= _PATIENCE:
            rest = _SHORTEST_REST * 2 ** min(self._failures - _PATIENCE, 10)
            self._rests_until = self.clock() + min(rest, _LONGEST_REST)

    def said_busy(self, seconds: float) -> None:
        self.busy_until = self.clock() + min(seconds, _LONGEST_REST)

    @property
    def busy(self) -> bool:
        return self.clock() < self.busy_until


@dataclass
class Fleet:
    """All replicas, by name; which there are follows from the table and from what names stand for."""

    table: Table
    clock: Clock = monotonic
    replicas: dict[str, Replica] = field(default_factory=dict)

    def set_table(self, table: Table) -> list[str]:
        """Another table: what has stayed the same keeps all that is known of it. Returns who has gone."""
        self.table = table
        for server in table.server:
            if not server.by_dns:
                self._keep(server, server.shown, server.url)
        servers = {server.shown: server for server in table.server}
        for replica in self.replicas.values():
            if (now := servers.get(replica.server.shown)) is not None and now.by_dns == replica.server.by_dns:
                replica.server = now
        return self._drop(lambda one: servers.get(one.server.shown) is not one.server)

    def set_addresses(self, server: Server, urls: Sequence[str]) -> list[str]:
        """What the name of a server stands for now. Returns who has gone."""
        named = {f"{server.shown}/{url.partition('://')[2]}": url for url in urls}
        for name, url in named.items():
            self._keep(server, name, url)
        return self._drop(lambda one: one.server is server and one.name not in named)

    def for_model(self, model: str) -> list[Replica]:
        """Who serves a model and may be sent a request now; those that are too busy only if there is nobody else."""
        there = [one for one in self.replicas.values() if one.serves(model) and one.can_take()]
        return [one for one in there if not one.busy] or there

    def anybody(self) -> list[Replica]:
        """Who may be sent a request that names no model."""
        return [one for one in self.replicas.values() if one.can_take()]

    def names(self, model: str) -> Sequence[str]:
        """The models that a name stands for, in the order in which they are tried."""
        alias = self.table.model.get(model)
        return alias.to if alias is not None else (model,)

    def models(self) -> list[str]:
        """All names that can be asked for now."""
        served = {model for one in self.replicas.values() if one.state is not State.GONE for model in one.models or ()}
        aliases = (name for name, alias in self.table.model.items() if served & set(alias.to))
        return sorted(served.union(aliases))

    def _keep(self, server: Server, name: str, url: str) -> None:
        known = self.replicas.get(name)
        if known is None or known.url != url:
            known = self.replicas[name] = Replica(server, url, name, self.clock)
        known.server = server
        if server.models is not None:
            known.models = frozenset(server.models)

    def _drop(self, gone: Callable[[Replica], bool]) -> list[str]:
        names = [name for name, replica in self.replicas.items() if gone(replica)]
        for name in names:
            del self.replicas[name]
        return names
