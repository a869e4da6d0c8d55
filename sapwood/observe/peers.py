"""The same metrics under the names of other engines, for dashboards and alerts that know those. docs/metrics.md has the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Alias(NamedTuple):
    """One of our metrics under another name. Labels that are not renamed are summed over; `only` picks one value of a label."""

    theirs: str
    ours: str
    renamed: Mapping[str, str] = {}
    only: Mapping[str, str] = {}


class Derived(NamedTuple):
    """A gauge that follows from several of ours, or None where these are missing."""

    theirs: str
    help: str
    value: Callable[[Look], float | None]


class Peer(NamedTuple):
    """An engine's names, without their prefix, and the labels that all of its metrics bear beside `model_name`."""

    prefix: str
    labels: Mapping[str, str]
    aliases: tuple[Alias, ...]
    derived: tuple[Derived, ...]


class Look:
    """What ours say at one moment."""

    def __init__(self, families: Mapping[str, Metric]) -> None:
        self._families = families

    def __call__(self, name: str, **labels: str) -> float | None:
        """The sum of the samples with these labels, None where there is none; `name` is a sample's, with its suffix."""
        family = self._families.get(name.removesuffix("_total"))
        samples = [] if family is None else [one for one in family.samples if one.name == name]
        values = [one.value for one in samples if labels.items() <= one.labels.items()]
        return sum(values) if values else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _usage(look: Look) -> float | None:
    """Of the first group of pages, which every layer that sees all positions shares."""
    return _ratio(look("sapwood_pages", group="0", state="used"), look("sapwood_pages", group="0", state="total"))


def _tokens(state: str) -> Callable[[Look], float | None]:
    def tokens(look: Look) -> float | None:
        pages, size = look("sapwood_pages", group="0", state=state), look("sapwood_page_size")
        return None if pages is None or size is None else pages * size

    return tokens


def _hit_rate(look: Look) -> float | None:
    return _ratio(look("sapwood_cached_prompt_tokens_total"), look("sapwood_prompt_tokens_total"))


def _accepted(look: Look) -> float | None:
    return _ratio(look("sapwood_engine_accepted_drafts_total"), look("sapwood_engine_drafts_total"))


VLLM = Peer(
    "vllm:",
    {"engine": "0"},
    (
        Alias("num_requests_running", "sapwood_running"),
        Alias("num_requests_waiting", "sapwood_waiting"),
        Alias("prefix_cache_queries", "sapwood_prompt_tokens"),
        Alias("prefix_cache_hits", "sapwood_cached_prompt_tokens"),
        Alias("prompt_tokens", "sapwood_prompt_tokens"),
        Alias("prompt_tokens_cached", "sapwood_cached_prompt_tokens"),
        Alias("generation_tokens", "sapwood_output_tokens"),
        Alias("num_preemptions", "sapwood_engine_preemptions"),
        Alias("spec_decode_num_draft_tokens", "sapwood_engine_drafts"),
        Alias("spec_decode_num_accepted_tokens", "sapwood_engine_accepted_drafts"),
        Alias("request_success", "sapwood_finished", {"reason": "finished_reason"}),
        Alias("request_prompt_tokens", "sapwood_generation_prompt_tokens"),
        Alias("request_generation_tokens", "sapwood_generation_output_tokens"),
        Alias("iteration_tokens_total", "sapwood_engine_step_tokens"),
        Alias("time_to_first_token_seconds", "sapwood_time_to_first_token_seconds"),
        Alias("inter_token_latency_seconds", "sapwood_inter_token_seconds"),
        Alias("e2e_request_latency_seconds", "sapwood_generation_seconds"),
        Alias("request_queue_time_seconds", "sapwood_queue_seconds"),
        Alias("request_prefill_time_seconds", "sapwood_prefill_seconds"),
        Alias("request_decode_time_seconds", "sapwood_decode_seconds"),
    ),
    (Derived("kv_cache_usage_perc", "Share of KV pages in use, from 0 to 1.", _usage),),
)

SGLANG = Peer(
    "sglang:",
    {},
    (
        Alias("num_running_reqs", "sapwood_running"),
        Alias("num_queue_reqs", "sapwood_waiting"),
        Alias("prompt_tokens", "sapwood_prompt_tokens"),
        Alias("generation_tokens", "sapwood_output_tokens"),
        Alias("cached_tokens", "sapwood_cached_prompt_tokens", {"source": "cache_source"}),
        Alias("num_requests", "sapwood_finished"),
        Alias("num_aborted_requests", "sapwood_finished", only={"reason": "abort"}),
        Alias("num_so_requests", "sapwood_engine_constrained"),
        Alias("num_retracted_requests", "sapwood_engine_preemptions"),
        Alias("prompt_tokens_histogram", "sapwood_generation_prompt_tokens"),
        Alias("generation_tokens_histogram", "sapwood_generation_output_tokens"),
        Alias("time_to_first_token_seconds", "sapwood_time_to_first_token_seconds"),
        Alias("inter_token_latency_seconds", "sapwood_inter_token_seconds"),
        Alias("e2e_request_latency_seconds", "sapwood_generation_seconds"),
        Alias("queue_time_seconds", "sapwood_queue_seconds"),
        Alias("page_size", "sapwood_page_size"),
        Alias("context_len", "sapwood_max_model_len"),
        Alias("engine_startup_time", "sapwood_start_seconds"),
    ),
    (
        Derived("token_usage", "Share of KV pages in use, from 0 to 1.", _usage),
        Derived("cache_hit_rate", "Share of prompt tokens that were cached, since the start.", _hit_rate),
        Derived("spec_accept_rate", "Share of drafts that were right, since the start.", _accepted),
        Derived("max_total_num_tokens", "Tokens that the KV cache holds.", _tokens("total")),
        Derived("kv_used_tokens", "Tokens of the KV cache in use.", _tokens("used")),
        Derived("kv_available_tokens", "Tokens of the KV cache that are free.", _tokens("free")),
        Derived("kv_evictable_tokens", "Cached tokens that nobody uses.", _tokens("evictable")),
    ),
)

PEERS: Mapping[str, Peer] = {"vllm": VLLM, "sglang": SGLANG}


class PeerCollector(Collector):
    """Says what `source` says, at the moment of a scrape, in a peer's words."""

    def __init__(self, source: CollectorRegistry, peer: Peer, *, model: str) -> None:
        self._source, self._peer = source, peer
        self._labels = {"model_name": model, **peer.labels}

    def collect(self) -> Iterator[Metric]:
        families = {family.name: family for family in self._source.collect()}
        prefix, look = self._peer.prefix, Look(families)
        for alias in self._peer.aliases:
            if alias.ours in families:
                yield self._renamed(families[alias.ours], alias)
        for theirs, help, value in self._peer.derived:
            found = value(look)
            if found is not None:
                family = GaugeMetricFamily(prefix + theirs, help, labels=tuple(self._labels))
                family.add_metric(tuple(self._labels.values()), found)
                yield family

    def _renamed(self, ours: Metric, alias: Alias) -> Metric:
        name = self._peer.prefix + alias.theirs
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for sample in ours.samples:
            suffix = sample.name.removeprefix(ours.name)
            if suffix == "_created" or not alias.only.items() <= sample.labels.items():
                continue
            kept = {**alias.renamed, "le": "le"}
            labels = {kept[label]: value for label, value in sample.labels.items() if label in kept}
            key = suffix, tuple((self._labels | labels).items())
            sums[key] = sums.get(key, 0.0) + sample.value
        family = Metric(name, ours.documentation, ours.type)
        for (suffix, items), value in sums.items():
            family.add_sample(name + suffix, dict(items), value)
        return family
