"""Which of several replicas is asked, by counts of our own: what others say of how much runs there is late by a period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sapwood.base.errors import RequestError
from sapwood.route.ask import Ask
from sapwood.route.fleet import Replica
from sapwood.route.policies import policies
from sapwood.route.prefixes import Prefixes
from sapwood.route.table import Server


class Picking:
    """Replicas by name, chosen by one of the router's policies. A request that is sent is running until `done` says otherwise."""

    def __init__(self, policy: str = "cache_aware") -> None:
        self._prefixes = Prefixes()
        self._policy = policies(self._prefixes)[policy]
        self._replicas: dict[str, Replica] = {}
        self._sent: dict[str, str] = {}

    def order(self, names: Sequence[str], path: str, body: bytes, headers: Mapping[str, str]) -> list[str]:
        """The best first, the others behind it, who has least to do first."""
        there = [self._known(name) for name in names]
        best = self._policy.choose(_ask(path, body, headers), there).replica
        others = sorted((one for one in there if one is not best), key=lambda one: one.running)
        return [one.name for one in (best, *others)]

    def sent(self, name: str, request: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        """A request of that id goes to a replica."""
        replica = self._known(name)
        self._policy.sent(_ask(path, body, headers), replica)
        self.done(request)  # sent once more, after it was refused
        replica.enters()
        self._sent[request] = name

    def done(self, request: str) -> None:
        """It was answered, or has failed."""
        name = self._sent.pop(request, None)
        if name is not None and name in self._replicas:
            self._replicas[name].leaves()

    def forget(self, name: str) -> None:
        """A replica has gone."""
        self._replicas.pop(name, None)
        self._prefixes.forget(name)
        for request in [request for request, there in self._sent.items() if there == name]:
            del self._sent[request]

    def running(self, name: str) -> int:
        """Requests that run at a replica."""
        return self._known(name).running

    def _known(self, name: str) -> Replica:
        if name not in self._replicas:
            self._replicas[name] = Replica(Server(url=f"http://{name}", name=name), "", name)
        return self._replicas[name]


def _ask(path: str, body: bytes, headers: Mapping[str, str]) -> Ask:
    try:
        return Ask(path, body, headers)
    except RequestError:  # whoever is asked will say so
        return Ask(path, b"", headers)
