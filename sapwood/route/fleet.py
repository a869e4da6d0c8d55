"""What the router knows of the servers: what they serve, how much they have to do, and whether they can be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

from sapwood.route.table import Alias, Server, Table

_PATIENCE = 3  # failures in a row
_SHORTEST_REST, _LONGEST_REST = 1.0, 30.0  # seconds

Clock = Callable[[], float]

GONE = "gone"
"""What metrics call servers that are there no more."""


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
        host: What requests call it, where `url` has an address in place of its name.
        running: Requests that were sent to it and are not answered to the end.
        models: What it serves; None until it has said so.
        alive: Whether it answered when it was last looked at.
        missed: Looks in a row that have found nobody.
        busy_until: When it wants to be asked again, where it said that it has too much to do: for all ("") or for who has a key of its own there.
    """

    server: Server
    url: str
    name: str
    clock: Clock = monotonic
    host: str = ""
    running: int = 0
    models: frozenset[str] | None = None
    alive: bool = True
    missed: int = 0
    draining: bool = False
    busy_until: dict[str, float] = field(default_factory=dict)
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
    def shown_url(self) -> str:
        """Without the user and the password that it may have."""
        scheme, _, rest = self.url.partition("://")
        place, slash, path = rest.partition("/")
        return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"

    @property
    def load(self) -> float:
        """Requests that run there, by its weight."""
        return self.running / self.server.weight

    def can_take(self) -> bool:
        """Whether it may be sent a request now."""
        state = self.state
        return state is State.READY or (state is State.TRIED and not self.running)

    @property
    def has_room(self) -> bool:
        """Whether fewer requests run there than may."""
        most = self.server.max_running
        return most is None or self.running < most

    def serves(self, model: str) -> bool:
        return self.models is not None and model in self.models

    def enters(self) -> None:
        """A request is sent to it."""
        self.running += 1

    def leaves(self) -> None:
        """A request that was is answered to the end, or has failed."""
        self.running -= 1

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        """It did not answer as it should. Each failure of one that is tried makes its rest twice as long."""
        self._failures += 1
        if self._failures >= _PATIENCE:
            rest = _SHORTEST_REST * 2 ** min(self._failures - _PATIENCE, 10)
            self._rests_until = self.clock() + min(rest, _LONGEST_REST)

    def said_busy(self, seconds: float, whose: str = "") -> None:
        """It wants to be left alone for so long, by all or by `whose` requests these are."""
        now = self.clock()
        self.busy_until = {one: until for one, until in self.busy_until.items() if until > now}
        self.busy_until[whose] = now + min(seconds, _LONGEST_REST)

    def busy(self, whose: str = "") -> bool:
        """Whether it has said so of all, or of those."""
        now = self.clock()
        return any(self.busy_until.get(one, 0.0) > now for one in ("", whose))


@dataclass
class Fleet:
    """All replicas, by name; which there are follows from the table and from what names stand for."""

    table: Table
    clock: Clock = monotonic
    replicas: dict[str, Replica] = field(default_factory=dict)
    begun: Callable[[Server], bool] = lambda server: False
    """Whether somebody begins replicas of a server when requests wait for them, of one that is looked up."""

    def coming(self, model: str | None) -> bool:
        """Whether nobody serves a model now, and somebody will."""
        return (
            model is not None
            and model in self._coming()
            and not any(one.alive and one.serves(model) for one in self.replicas.values())
        )

    def _coming(self) -> set[str]:
        return {model for one in self.table.server if one.looked_up and self.begun(one) for model in one.models or ()}

    def set_table(self, table: Table) -> list[str]:
        """Another table: what has stayed the same keeps all that is known of it. Returns who has gone."""
        self.table = table
        gone = [server.shown for server in table.server if not server.looked_up and self._keep(server, server.shown)]
        servers = {server.shown: server for server in table.server}
        for replica in self.replicas.values():
            now = servers.get(replica.server.shown)
            if now is not None and now.looked_up and now.url == replica.server.url:
                self._tell(replica, now)
        return gone + self._drop(lambda one: servers.get(one.server.shown) is not one.server)

    def set_addresses(self, server: Server, urls: Sequence[str], host: str = "") -> list[str]:
        """Where a server is to be found now, one that is looked up; `host` is what it is called there. Returns who has gone."""
        if not any(one is server for one in self.table.server):
            return []  # there is another table by now
        named = {f"{server.shown}/{url.partition('://')[2]}": url for url in urls}
        gone = [name for name, url in named.items() if self._keep(server, name, url, host)]
        return gone + self._drop(lambda one: one.server is server and one.name not in named)

    def able(self, model: str | None, but: Sequence[str] = ()) -> list[Replica]:
        """Who serves a model, or for None anything, and answers, except those named."""
        return [
            one
            for one in self.replicas.values()
            if (model is None or one.serves(model)) and one.can_take() and one.name not in but
        ]

    def alias(self, model: str) -> Alias | None:
        """What the table has under a name."""
        return next((made for name in _spellings(model) if (made := self.table.model.get(name)) is not None), None)

    def names(self, model: str) -> Sequence[str]:
        """The models that a name stands for, in the order in which they are tried. NAME:latest is NAME, as Ollama has it, and the other
        way round."""
        coming = self._coming()
        for name in _spellings(model):
            if (alias := self.table.model.get(name)) is not None:
                return alias.to
            if name in coming or any(one.serves(name) for one in self.replicas.values()):
                return (name,)
        return (model,)

    def shown(self, name: str) -> str:
        """A server's name as metrics have it: all that are gone are one, so that there are no more names than servers."""
        return name if name in self.replicas else GONE

    def models(self) -> list[str]:
        """All names that can be asked for now."""
        served = {model for one in self.replicas.values() if one.state is not State.GONE for model in one.models or ()}
        served |= self._coming()
        aliases = (name for name, alias in self.table.model.items() if served & set(alias.to))
        return sorted(served.union(aliases, self.table.auto))

    def _keep(self, server: Server, name: str, url: str = "", host: str = "") -> bool:
        """Have a replica of that name there. Whether there was another one, somewhere else."""
        url, known = url or server.url, self.replicas.get(name)
        moved = known is not None and known.url != url
        if known is None or moved:
            known = self.replicas[name] = Replica(server, url, name, self.clock, host)
        self._tell(known, server)
        return moved

    @staticmethod
    def _tell(replica: Replica, server: Server) -> None:
        if server.models is not None:
            replica.models = frozenset(server.models)
        elif replica.server.models is not None:
            replica.models = None  # it is asked again
        replica.server = server

    def _drop(self, gone: Callable[[Replica], bool]) -> list[str]:
        names = [name for name, replica in self.replicas.items() if gone(replica)]
        for name in names:
            del self.replicas[name]
        return names


def _spellings(model: str) -> tuple[str, str]:
    short = model.removesuffix(":latest")
    return model, short if short != model else f"{model}:latest"
