"""Our metrics in the words of other engines."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from sapwood.base.histogram import Histogram
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Stats
from sapwood.observe.metrics import Metrics
from sapwood.observe.peers import PEERS
from sapwood.observe.table import ENGINE, FRONT
from tests.observe.test_metrics import Watched


def told(peer: str | None) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples of a server that has done a little."""
    steps = {
        kind: Histogram((8.0, 64.0), [count, 0, 1], 100.0 * count) for kind, count in (("decode", 5), ("mixed", 2))
    }
    counters = {"preemptions": 4, "constrained": 1, "drafts_lookup": 8, "accepted_drafts_lookup": 6, "drafts_tree": 4}
    watched = Watched(stats=Stats(3, 2, counters, {}, [[64, 32, 16], [9, 9, 0]], {"step_tokens": steps}))
    metrics = Metrics(CollectorRegistry(), model="m", engine=watched, peer=peer)
    for reason, prompt, cached in (("stop", 10, 8), ("abort", 10, 0)):
        meter = metrics.meter(prompt, SamplingParams())
        meter.tokens(2, waited=0.0)
        meter.end(reason, num_cached_tokens=cached)
    families = text_string_to_metric_families(metrics.exposition().decode())
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def test_vllm() -> None:
    found = told("vllm")

    def value(name: str, **labels: str) -> float:
        return found[f"vllm:{name}", tuple(sorted({"model_name": "m", "engine": "0", **labels}.items()))]

    assert (value("num_requests_running"), value("num_requests_waiting")) == (3, 2)
    assert value("request_success_total", finished_reason="abort") == 1
    assert value("prefix_cache_hits_total") / value("prefix_cache_queries_total") == 0.4
    assert value("kv_cache_usage_perc") == 0.25
    assert value("iteration_tokens_total_bucket", le="8.0") == 7  # of all kinds together
    assert (value("iteration_tokens_total_count"), value("iteration_tokens_total_sum")) == (9, 700)
    assert value("spec_decode_num_draft_tokens_total") == 12
    assert value("time_to_first_token_seconds_count") == value("request_queue_time_seconds_count") == 2


def test_sglang() -> None:
    found = told("sglang")

    def value(name: str, **labels: str) -> float:
        return found[f"sglang:{name}", tuple(sorted({"model_name": "m", **labels}.items()))]

    assert (value("num_running_reqs"), value("num_queue_reqs")) == (3, 2)
    assert (value("num_requests_total"), value("num_aborted_requests_total")) == (2, 1)
    assert value("cached_tokens_total", cache_source="device") == 8
    assert (value("cache_hit_rate"), value("token_usage")) == (0.4, 0.25)
    kv = [value(f"kv_{state}_tokens") for state in ("used", "available", "evictable")]
    assert kv == [64, 128, 64] and sum(kv) == value("max_total_num_tokens")
    assert value("spec_accept_rate") == 0.5
    assert value("e2e_request_latency_seconds_count") == 2


@pytest.mark.parametrize("peer", PEERS)
def test_all_of_ours_stay_and_all_of_theirs_come(peer: str) -> None:
    plain, found = told(None), told(peer)
    assert {key for key in found if key[0].startswith("sapwood_")} == set(plain)
    names = {name for name, _ in found}
    known = PEERS[peer]
    for theirs in [*(alias.theirs for alias in known.aliases), *(one.theirs for one in known.derived)]:
        name = known.prefix + theirs
        assert names & {name, f"{name}_total", f"{name}_bucket"}, name


def test_they_are_made_of_what_there_is() -> None:
    for peer in PEERS.values():
        for alias in peer.aliases:
            assert {*alias.renamed, *alias.only} <= set((FRONT | ENGINE)[alias.ours].labels)


def test_before_the_first_report_nothing_is_made_up() -> None:
    metrics = Metrics(CollectorRegistry(), model="m", engine=Watched(), peer="vllm")
    text = metrics.exposition().decode()
    assert "vllm:num_requests_running" not in text and "vllm:kv_cache_usage_perc" not in text
    assert 'vllm:prompt_tokens_total{engine="0",model_name="m"} 0.0' in text
