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
        self._fleet = fleet
        self._children: dict[tuple[Counter, tuple[str, ...]], Counter] = {}
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
        self._set_up_kv(registry)
        self._prefilled = Counter(
            "sapwood_route_prefilled",
            "Prompts that a server was asked to read for another one: read, or not (failed)",
            ("server", "how"),
            registry=registry,
        )
        self._tokens = Counter("sapwood_route_tokens", "Tokens that answers have used", registry=registry)
        self._servers = _Servers(fleet)
        registry.register(self._servers)

    def _set_up_kv(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "sapwood_route_kv_events", "Events of servers' caches that were heard", ("server",), registry=registry
        )
        self._gaps = Counter(
            "sapwood_route_kv_gaps",
            "Events that were missed: replayed (asked for again) or lost",
            ("server", "how"),
            registry=registry,
        )
        self._tokenized = Counter(
            "sapwood_route_tokenized",
            "Prompts that a server was asked to make tokens of: told, or not (failed)",
            ("how",),
            registry=registry,
        )

    def chosen(self, server: str, policy: str, reason: str) -> None:
        self._counted(self._chosen, server, policy, reason).inc()

    def answered(self, server: str, status: int) -> None:
        self._counted(self._answered, server, str(status)).inc()

    def _counted(self, counter: Counter, *labels: str) -> Counter:
        """A counter's own for these labels, the first of which is a server."""
        key = counter, (self._fleet.shown(labels[0]), *labels[1:])
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = counter.labels(*key[1])
        return found

    def forget(self, server: str) -> None:
        """It is gone: what was counted of it is told no more."""
        for counter, labels in [key for key in self._children if key[1][0] == server]:
            del self._children[counter, labels]
            counter.remove(*labels)

    def failed(self, server: str, why: str) -> None:
        self._counted(self._failed, server, why).inc()

    def overhead(self, seconds: float) -> None:
        self._overhead.observe(seconds)

    def watch_line(self, waiting: Callable[[], int]) -> None:
        """Where to read how many wait."""
        self._waiting.set_function(waiting)

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def turned_away(self, why: str) -> None:
        self._turned_away.labels(why).inc()

    def watch_kv(self, blocks: Callable[[], dict[str, int]]) -> None:
        """Where to read how many blocks are known of each server."""
        self._servers.kv_blocks = blocks

    def kv_events(self, server: str, count: int) -> None:
        self._counted(self._events, server).inc(count)

    def kv_gap(self, server: str, how: str) -> None:
        self._counted(self._gaps, server, how).inc()

    def tokenized(self, how: str) -> None:
        self._tokenized.labels(how).inc()

    def prefilled(self, server: str, how: str) -> None:
        self._counted(self._prefilled, server, how).inc()

    def used(self, tokens: int) -> None:
        self._tokens.inc(tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Servers(Collector):
    """What is known of the servers when somebody asks."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.kv_blocks: Callable[[], dict[str, int]] = dict

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("sapwood_route_running", "Requests at a server", labels=["server"])
        state = GaugeMetricFamily("sapwood_route_state", "1 for the state of a server", labels=["server", "state"])
        for replica in self._fleet.replicas.values():
            running.add_metric([replica.name], replica.running)
            for one in State:
                state.add_metric([replica.name, one.value], float(replica.state is one))
        blocks = GaugeMetricFamily("sapwood_route_kv_blocks", "Blocks that a server tells it has", labels=["server"])
        for name, count in self.kv_blocks().items():
            blocks.add_metric([name], count)
        yield from (running, state, blocks)
