from __future__ import annotations

from prometheus_client import CollectorRegistry

from sapwood.base.wire import Stats
from sapwood.observe import Metrics


def test_two_servers_do_not_share_counts() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    first, _ = (Metrics(registry, model="m", stats=lambda: None) for registry in registries)
    meter = first.meter(10)
    meter.tokens(1)
    meter.end("stop", num_cached_tokens=4)
    counts = [registry.get_sample_value("sapwood_prompt_tokens_total") for registry in registries]
    assert counts == [10.0, 0.0]


def test_tokens_that_come_together_share_their_wait() -> None:
    registry = CollectorRegistry()
    meter = Metrics(registry, model="m", stats=lambda: None).meter(1)
    for count in (1, 1, 3):
        meter.tokens(count)
    assert registry.get_sample_value("sapwood_time_to_first_token_seconds_count") == 1
    assert registry.get_sample_value("sapwood_inter_token_seconds_count") == 4
    assert registry.get_sample_value("sapwood_output_tokens_total") == 5


def test_engine_reports_are_read_when_scraped() -> None:
    registry = CollectorRegistry()
    reports: list[Stats] = []
    Metrics(registry, model="m", stats=lambda: reports[-1] if reports else None)
    assert registry.get_sample_value("sapwood_running") is None
    reports.append(Stats(1, 0, {"steps": 2}, {}, [[8, 4, 2], [9, 9, 0]]))
    assert registry.get_sample_value("sapwood_running") == 1
    assert registry.get_sample_value("sapwood_engine_steps_total") == 2
    assert registry.get_sample_value("sapwood_pages", {"group": "1", "state": "total"}) == 9
