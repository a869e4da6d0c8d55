"""Prometheus metrics of a server: what the front measures, and the engine's own counts read when scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from time import perf_counter, time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sapwood.base.wire import Stats

_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
_TOKEN_BUCKETS = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 5.0)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)


class Metrics:
    """The front's measurements. Names begin with `sapwood_`; times are seconds as the client would see them."""

    def __init__(self, registry: CollectorRegistry, *, model: str, stats: Callable[[], Stats | None]) -> None:
        """Register with `registry`; `stats` returns the engine's latest report, if there is one."""
        self.registry = registry
        Gauge("sapwood_model", "1, labelled with the served model.", ["model"], registry=registry).labels(model).set(1)
        self._requests = Counter(
            "sapwood_requests", "HTTP requests by endpoint and status.", ["endpoint", "status"], registry=registry
        )
        self._seconds = Histogram(
            "sapwood_request_seconds",
            "From a request's arrival to the end of its response.",
            ["endpoint"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.finished = Counter("sapwood_finished", "Generations by how they ended.", ["reason"], registry=registry)
        self.prompt_tokens = Counter("sapwood_prompt_tokens", "Prompt tokens of generations.", registry=registry)
        self.cached_tokens = Counter(
            "sapwood_cached_prompt_tokens", "Prompt tokens found in the prefix cache.", registry=registry
        )
        self.tool_calls = Counter(
            "sapwood_tool_calls",
            "Calls of tools in outputs by whether they could be read.",
            ["result"],
            registry=registry,
        )
        self.schema_checks = Counter(
            "sapwood_schema_checks",
            "Complete outputs that were checked by keywords which no grammar follows, by what was found.",
            ["result"],
            registry=registry,
        )
        self.first_token = Histogram(
            "sapwood_time_to_first_token_seconds",
            "From a generation's submission to its first token.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.tokens = TokenTally()
        registry.register(self.tokens)
        registry.register(EngineCollector(stats))

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one HTTP exchange. `endpoint` is a known route, so that labels stay few."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def meter(self, num_prompt_tokens: int) -> Meter:
        """Start to measure one generation."""
        return Meter(self, num_prompt_tokens)


class Meter:
    """Measures one generation: `tokens` at each arrival, `end` once."""

    __slots__ = ("_last", "_metrics", "_num_prompt_tokens", "_started")

    def __init__(self, metrics: Metrics, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._last = perf_counter()
        self._started = False

    def tokens(self, count: int) -> None:
        """`count` (> 0) tokens have arrived just now."""
        now = perf_counter()
        waited, self._last = now - self._last, now
        tally = self._metrics.tokens
        tally.count += count
        if self._started:
            tally.observe(waited / count, count)
        else:
            self._started = True
            self._metrics.first_token.observe(waited)

    def end(self, reason: str, *, num_cached_tokens: int) -> None:
        """The generation is over: stop, length, abort or error."""
        self._metrics.finished.labels(reason).inc()
        self._metrics.prompt_tokens.inc(self._num_prompt_tokens)
        self._metrics.cached_tokens.inc(num_cached_tokens)


class TokenTally(Collector):
    """What is counted for every token: plain numbers of one thread, made into metrics when scraped."""

    def __init__(self) -> None:
        self.count = 0
        self._since = time()
        self._waits = [0] * (len(_TOKEN_BUCKETS) + 1)  # per bucket, the last without a bound
        self._seconds = 0.0

    def observe(self, seconds: float, count: int) -> None:
        """`count` tokens came `seconds` after the one before each."""
        self._waits[bisect_left(_TOKEN_BUCKETS, seconds)] += count
        self._seconds += seconds * count

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily("sapwood_output_tokens", "Generated tokens.")
        tokens.add_metric([], self.count, created=self._since)
        yield tokens
        waits = HistogramMetricFamily(
            "sapwood_inter_token_seconds", "Between a generation's tokens; tokens that come together share their wait."
        )
        bounds = [*map(floatToGoString, _TOKEN_BUCKETS), "+Inf"]
        waits.add_metric([], [*zip(bounds, accumulate(self._waits), strict=True)], self._seconds)
        waits.add_sample("sapwood_inter_token_seconds_created", {}, self._since)
        yield waits


class EngineCollector(Collector):
    """Turns the engine's latest report into metrics at the moment of a scrape, so that nothing runs in between."""

    def __init__(self, stats: Callable[[], Stats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        yield GaugeMetricFamily("sapwood_running", "Requests that hold a slot.", stats.running)
        yield GaugeMetricFamily("sapwood_waiting", "Requests that wait for a slot.", stats.waiting)
        for name, count in stats.counters.items():
            yield CounterMetricFamily(f"sapwood_engine_{name}", f"The engine's count of {_words(name)}.", count)
        for name, seconds in stats.seconds.items():
            yield CounterMetricFamily(f"sapwood_engine_{name}", f"The engine's {_words(name)}.", seconds)
        pages = GaugeMetricFamily("sapwood_pages", "KV pages of a group.", labels=["group", "state"])
        for group, (total, free, evictable) in enumerate(stats.pages):
            for state, count in (("total", total), ("free", free), ("evictable", evictable)):
                pages.add_metric([str(group), state], count)
        yield pages


def _words(name: str) -> str:
    return name.replace("_", " ")
