"""What the router counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sapwood.route.fleet import Fleet, State

_WAITED = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_OVERHEAD = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0)


class Metrics:
    """Names begin with `sapwood_route_`; docs/routing.md lists them. Guests count in the same `registry`."""

    def __init__(self, fleet: Fleet) -> None:
        registry = self.registry = CollectorRegistry()
        self._chosen = Counter(
            "sapwood_route_chosen",
            "Requests that were sent to a server, by how it was chosen",
            ("server", "policy", "reason"),
            registry=registry,
        )
        self._answered = Counter(
            "sapwood_route_answered", "Answers to clients, by status", ("server", "status"), registry=registry
        )
        self._failed = Counter(
            "sapwood_route_failed",
            "Attempts that brought no answer: silent, busy, broken; cut: in the middle of one",
            ("server", "why"),
            registry=registry,
        )
        self._overhead = Histogram(
            "sapwood_route_overhead_seconds",
            "From a request that was read to one that is sent on",
            buckets=_OVERHEAD,
            registry=registry,
        )
        self._waiting = Gauge("sapwood_route_waiting", "Requests that wait for a server with room", registry=registry)
        self._waited = Histogram(
            "sapwood_route_waited_seconds",
            "How long requests waited that had to and were let go",
            buckets=_WAITED,
            registry=registry,
        )
        self._turned_away = Counter(
            "sapwood_route_turned_away",
            "Requests that no server had room for: full (too many waited already), long (they have waited too long)",
            ("why",),
            registry=registry,
        )
        self._tokens = Counter("sapwood_route_tokens", "Tokens that answers have used", registry=registry)
        registry.register(_Servers(fleet))

    def chosen(self, server: str, policy: str, reason: str) -> None:
        self._chosen.labels(server, policy, reason).inc()

    def answered(self, server: str, status: int) -> None:
        self._answered.labels(server, str(status)).inc()

    def failed(self, server: str, why: str) -> None:
        self._failed.labels(server, why).inc()

    def overhead(self, seconds: float) -> None:
        self._overhead.observe(seconds)

    def watch_line(self, waiting: Callable[[], int]) -> None:
        """Where to read how many wait."""
        self._waiting.set_function(waiting)

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def turned_away(self, why: str) -> None:
        self._turned_away.labels(why).inc()

    def used(self, tokens: int) -> None:
        self._tokens.inc(tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Servers(Collector):
    """What is known of the servers when somebody asks."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("sapwood_route_running", "Requests at a server", labels=["server"])
        state = GaugeMetricFamily("sapwood_route_state", "1 for the state of a server", labels=["server", "state"])
        for replica in self._fleet.replicas.values():
            running.add_metric([replica.name], replica.running)
            for one in State:
                state.add_metric([replica.name, one.value], float(replica.state is one))
        yield from (running, state)
