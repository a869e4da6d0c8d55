"""Prometheus metrics of a server: what the front measures, and the engine's own counts read when scraped."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from time import perf_counter, time
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sapwood import __version__
from sapwood.base import histogram
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Facts, Stats
from sapwood.observe.exchange import current
from sapwood.observe.peers import PEERS, PeerCollector
from sapwood.observe.table import ENGINE, FRONT, Kind, Named

_DEVICE = "device"  # the cache's only tier today


class Watched(Protocol):
    """An engine, as far as metrics look at it."""

    @property
    def facts(self) -> Facts: ...

    @property
    def stats(self) -> Stats | None: ...

    @property
    def dead(self) -> str | None: ...

    @property
    def restarts(self) -> int: ...

    @property
    def replicas(self) -> Sequence[Watched]: ...


class Metrics:
    """The front's measurements. Names begin with `sapwood_`; times are seconds as the client would see them."""

    def __init__(self, registry: CollectorRegistry, *, model: str, engine: Watched, peer: str | None = None) -> None:
        """Register with `registry`; `engine` is looked at when metrics are scraped. All is told in the words of a `peer` too."""
        self.registry = registry
        self._peers = CollectorRegistry()
        if peer is not None:
            self._peers.register(PeerCollector(registry, PEERS[peer], model=model))
        self._gauge("sapwood_model").labels(model).set(1)
        self._gauge("sapwood_build_info").labels(__version__, platform.python_version()).set(1)
        self._requests = self._counter("sapwood_requests")
        self._seconds = self._histogram("sapwood_request_seconds")
        self._key_requests = self._counter("sapwood_key_requests")
        self._key_tokens = self._counter("sapwood_key_tokens")
        self.finished = self._counter("sapwood_finished")
        self.prompt_tokens = self._counter("sapwood_prompt_tokens")
        self.cached_tokens = self._counter("sapwood_cached_prompt_tokens")
        self.tool_calls = self._counter("sapwood_tool_calls")
        self.schema_checks = self._counter("sapwood_schema_checks")
        self.audio_seconds = self._counter("sapwood_audio_seconds")
        self.audio_windows = self._counter("sapwood_audio_windows")
        self.audio_tries = self._counter("sapwood_audio_tries")
        self.first_token = self._histogram("sapwood_time_to_first_token_seconds")
        self.queue = self._histogram("sapwood_queue_seconds")
        self.prefill = self._histogram("sapwood_prefill_seconds")
        self.decode = self._histogram("sapwood_decode_seconds")
        self.generation = self._histogram("sapwood_generation_seconds")
        self.prompt_length = self._histogram("sapwood_generation_prompt_tokens")
        self.output_length = self._histogram("sapwood_generation_output_tokens")
        self._begin()
        self.tokens = TokenTally()
        registry.register(self.tokens)
        registry.register(EngineCollector(engine))

    def _begin(self) -> None:
        """Zeros where labels are known, so that what happens for the first time is seen as growth."""
        known = (
            (self.finished, ("stop", "length", "abort", "error")),
            (self.cached_tokens, (_DEVICE,)),
            (self.tool_calls, ("read", "malformed")),
            (self.schema_checks, ("valid", "invalid")),
        )
        for counter, values in known:
            for value in values:
                counter.labels(value)

    def request(self, endpoint: str, status: int, seconds: float, *, key: str = "") -> None:
        """Count one HTTP exchange. `endpoint` is a known route, and `key` the name of a known key, so that labels stay few."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        if key:
            self._key_requests.labels(key, str(status)).inc()

    def used(self, key: str, prompt_tokens: int, output_tokens: int) -> None:
        """Count the tokens of a request's generations for its key."""
        if key:
            self._key_tokens.labels(key, "prompt").inc(prompt_tokens)
            self._key_tokens.labels(key, "output").inc(output_tokens)

    def meter(self, num_prompt_tokens: int, params: SamplingParams) -> Meter:
        """Start to measure one generation; it is one of the request that is being served here."""
        meter = Meter(self, num_prompt_tokens, params)
        if (exchange := current()) is not None:
            exchange.meters.append(meter)
        return meter

    def exposition(self) -> bytes:
        """All metrics now, in Prometheus' text format."""
        return generate_latest(self.registry) + generate_latest(self._peers)

    def _gauge(self, name: str) -> Gauge:
        named = FRONT[name]
        return Gauge(named.name, named.help, named.labels, registry=self.registry)

    def _counter(self, name: str) -> Counter:
        named = FRONT[name]
        return Counter(named.name, named.help, named.labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        named = FRONT[name]
        return Histogram(named.name, named.help, named.labels, buckets=named.buckets, registry=self.registry)


class Meter:
    """Measures one generation: `tokens` at each arrival, `end` once.

    Attributes:
        params: How its tokens are drawn.
        began, first, last: When it was submitted, and its first and latest tokens came, on the clock of `perf_counter`; no
            tokens have while `first` is 0.
        waited: Seconds in the engine before its first step, -1 as long as they are not known.
        reason: How it ended, "" before.
    """

    __slots__ = (
        "_metrics",
        "began",
        "first",
        "last",
        "num_cached_tokens",
        "num_output_tokens",
        "num_prompt_tokens",
        "params",
        "reason",
        "waited",
    )

    def __init__(self, metrics: Metrics, num_prompt_tokens: int, params: SamplingParams) -> None:
        self._metrics = metrics
        self.began = self.last = perf_counter()
        self.first = 0.0
        self.waited = -1.0
        self.num_prompt_tokens, self.params = num_prompt_tokens, params
        self.num_output_tokens = self.num_cached_tokens = 0
        self.reason = ""

    def tokens(self, count: int, *, waited: float = -1.0) -> None:
        """`count` (> 0) tokens have arrived just now; `waited` comes with the first."""
        now = perf_counter()
        since, self.last = now - self.last, now
        self.num_output_tokens += count
        tally = self._metrics.tokens
        tally.count += count
        if self.first:
            tally.waits.add(since / count, count)
        else:
            self.first = now
            self._begin(since, waited)

    def _begin(self, seconds: float, waited: float) -> None:
        metrics = self._metrics
        metrics.first_token.observe(seconds)
        if waited >= 0:
            self.waited = waited
            metrics.queue.observe(waited)
            metrics.prefill.observe(max(seconds - waited, 0.0))

    def end(self, reason: str, *, num_cached_tokens: int) -> None:
        """The generation is over: stop, length, abort or error."""
        metrics, self.reason, self.num_cached_tokens = self._metrics, reason, num_cached_tokens
        metrics.finished.labels(reason).inc()
        metrics.prompt_tokens.inc(self.num_prompt_tokens)
        metrics.cached_tokens.labels(_DEVICE).inc(num_cached_tokens)
        metrics.prompt_length.observe(self.num_prompt_tokens)
        metrics.output_length.observe(self.num_output_tokens)
        metrics.generation.observe(perf_counter() - self.began)
        if self.first:
            metrics.decode.observe(self.last - self.first)


class TokenTally(Collector):
    """What is counted for every token: plain numbers of one thread, made into metrics when scraped."""

    def __init__(self) -> None:
        self.count = 0
        self.waits = histogram.Histogram.over(FRONT["sapwood_inter_token_seconds"].buckets)
        self._since = time()

    def collect(self) -> Iterator[Metric]:
        named = FRONT["sapwood_output_tokens"]
        tokens = CounterMetricFamily(named.name, named.help)
        tokens.add_metric([], self.count, created=self._since)
        yield tokens
        yield _spread(FRONT["sapwood_inter_token_seconds"], {"": self.waits})


class EngineCollector(Collector):
    """Turns the engine's latest report into metrics at the moment of a scrape, so that nothing runs in between."""

    def __init__(self, engine: Watched) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        yield _number("sapwood_engine_up", self._engine.dead is None)
        restarts = ENGINE["sapwood_engine_restarts"]
        yield CounterMetricFamily(restarts.name, restarts.help, self._engine.restarts)
        yield from _told(self._engine.facts)
        yield from _each(self._engine.replicas)
        stats = self._engine.stats
        if stats is None:
            return
        yield _number("sapwood_running", stats.running)
        yield _number("sapwood_waiting", stats.waiting)
        yield from _counted(stats.counters | stats.seconds)
        for name, by_kind in stats.histograms.items():
            yield _spread(_named(f"sapwood_engine_{name}", "histogram"), by_kind)
        yield _pages(stats.pages)


_OF_EACH = ("steps", "prompt_tokens", "cached_tokens", "output_tokens", "finished")


def _each(replicas: Sequence[Watched]) -> Iterator[Metric]:
    """What there is to tell of each of several engines, or of the only one."""
    up, running, waiting = (
        GaugeMetricFamily(named.name, named.help, labels=named.labels)
        for named in (ENGINE[f"sapwood_replica_{name}"] for name in ("up", "running", "waiting"))
    )
    named = ENGINE["sapwood_replica_restarts"]
    restarts = CounterMetricFamily(named.name, named.help, labels=named.labels)
    named = ENGINE["sapwood_replica_events"]
    events = CounterMetricFamily(named.name, named.help, labels=named.labels)
    for number, one in enumerate(replicas):
        up.add_metric([str(number)], one.dead is None)
        restarts.add_metric([str(number)], one.restarts)
        if (stats := one.stats) is not None and one.dead is None:
            running.add_metric([str(number)], stats.running)
            waiting.add_metric([str(number)], stats.waiting)
            for name in _OF_EACH:
                events.add_metric([str(number), name], stats.counters.get(name, 0))
    yield from (up, running, waiting, restarts, events)


def _told(facts: Facts) -> Iterator[Metric]:
    """What does not change while the engine lives."""
    named = ENGINE["sapwood_engine_info"]
    engine = GaugeMetricFamily(named.name, named.help, labels=named.labels)
    engine.add_metric([facts.device, facts.dtype, facts.attention_backend], 1)
    yield engine
    yield _number("sapwood_max_model_len", facts.max_model_len)
    yield _number("sapwood_max_num_seqs", facts.max_num_seqs)
    yield _number("sapwood_page_size", facts.page_size)
    named = ENGINE["sapwood_start_seconds"]
    start = GaugeMetricFamily(named.name, named.help, labels=named.labels)
    for part, seconds in facts.seconds_to_ready.items():
        start.add_metric([part], seconds)
    yield start


_BESIDE = ("sapwood_engine_up", "sapwood_engine_restarts")  # which engines do not count themselves


def _counted(counts: Mapping[str, float]) -> Iterator[Metric]:
    """The engine's counters. Those of a labelled metric are called as it is, with the label's value behind; what nobody in this engine
    counts is 0."""
    nothing = {
        named.name.removeprefix("sapwood_engine_"): 0
        for named in ENGINE.values()
        if named.name.startswith("sapwood_engine_") and named.kind != "histogram" and not named.labels
        if named.name not in _BESIDE
    }
    families = {
        named.name: CounterMetricFamily(named.name, named.help, labels=named.labels)
        for named in ENGINE.values()
        if named.kind == "counter" and named.labels and named.name.startswith("sapwood_engine_")
    }
    for name, count in (nothing | dict(counts)).items():
        whole = f"sapwood_engine_{name}"
        for family in families.values():
            if whole.startswith(f"{family.name}_"):
                family.add_metric([whole.removeprefix(f"{family.name}_")], count)
                break
        else:
            named = _named(whole, "counter")
            yield (GaugeMetricFamily if named.kind == "gauge" else CounterMetricFamily)(named.name, named.help, count)
    yield from families.values()


def _pages(groups: list[list[int]]) -> Metric:
    named = ENGINE["sapwood_pages"]
    pages = GaugeMetricFamily(named.name, named.help, labels=named.labels)
    for group, (total, free, evictable) in enumerate(groups):
        states = {"total": total, "free": free, "evictable": evictable, "used": total - free - evictable}
        for state, count in states.items():
            pages.add_metric([str(group), state], count)
    return pages


def _named(name: str, kind: Kind) -> Named:
    """What the table says of an engine's metric; whatever takes part in an engine may count more than that."""
    words = name.removeprefix("sapwood_engine_").replace("_", " ")
    return ENGINE.get(name) or Named(name, kind, f"The engine's {words}.", ("kind",) if kind == "histogram" else ())


def _number(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, ENGINE[name].help, value)


def _spread(named: Named, by_label: Mapping[str, histogram.Histogram]) -> Metric:
    family = HistogramMetricFamily(named.name, named.help, labels=named.labels)
    for label, one in by_label.items():
        bounds = [*map(floatToGoString, one.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(one.counts), strict=True))
        family.add_metric([label] if named.labels else [], buckets, one.total)
    return family
