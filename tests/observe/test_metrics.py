from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from sapwood.base.histogram import Histogram
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Facts, Stats
from sapwood.observe.metrics import Metrics
from tests.facts import make_facts


@dataclass
class Watched:
    facts: Facts = field(default_factory=make_facts)
    stats: Stats | None = None
    dead: str | None = None
    restarts: int = 0

    @property
    def replicas(self) -> tuple[Watched, ...]:
        return (self,)


def measure(watched: Watched | None = None) -> tuple[Metrics, CollectorRegistry]:
    registry = CollectorRegistry()
    return Metrics(registry, model="m", engine=watched or Watched()), registry


def test_two_servers_do_not_share_counts() -> None:
    (first, one), (_, other) = measure(), measure()
    meter = first.meter(10, SamplingParams())
    meter.tokens(1)
    meter.end("stop", num_cached_tokens=4)
    assert [registry.get_sample_value("sapwood_prompt_tokens_total") for registry in (one, other)] == [10.0, 0.0]


def test_tokens_that_come_together_share_their_wait() -> None:
    metrics, registry = measure()
    meter = metrics.meter(1, SamplingParams())
    for count in (1, 1, 3):
        meter.tokens(count)
    assert registry.get_sample_value("sapwood_time_to_first_token_seconds_count") == 1
    assert registry.get_sample_value("sapwood_inter_token_seconds_count") == 4
    assert registry.get_sample_value("sapwood_output_tokens_total") == 5


def test_a_generation_is_taken_apart() -> None:
    metrics, registry = measure()
    meter = metrics.meter(100, SamplingParams())
    meter.tokens(1, waited=0.25)
    meter.tokens(2)
    meter.end("length", num_cached_tokens=64)
    value = registry.get_sample_value
    assert value("sapwood_queue_seconds_sum") == 0.25
    assert value("sapwood_prefill_seconds_count") == value("sapwood_decode_seconds_count") == 1
    assert value("sapwood_prefill_seconds_sum") == 0  # never less, whatever two clocks say
    assert value("sapwood_generation_seconds_count") == 1
    assert value("sapwood_generation_prompt_tokens_sum") == 100
    assert value("sapwood_generation_output_tokens_sum") == 3
    assert value("sapwood_cached_prompt_tokens_total", {"source": "device"}) == 64


def test_a_generation_without_tokens_waited_for_none() -> None:
    metrics, registry = measure()
    metrics.meter(3, SamplingParams()).end("abort", num_cached_tokens=0)
    value = registry.get_sample_value
    assert value("sapwood_finished_total", {"reason": "abort"}) == value("sapwood_generation_seconds_count") == 1
    for name in ("queue", "prefill", "decode", "time_to_first_token"):
        assert value(f"sapwood_{name}_seconds_count") == 0


def test_engine_reports_are_read_when_scraped() -> None:
    watched = Watched()
    _, registry = measure(watched)
    value = registry.get_sample_value
    assert value("sapwood_running") is None
    steps = Histogram.over((0.1, 1.0))
    for seconds in (0.05, 0.5, 5.0):
        steps.add(seconds)
    watched.stats = Stats(
        1,
        0,
        {"steps": 2, "somersaults": 3, "drafts_lookup": 8, "accepted_drafts_lookup": 6},
        {},
        [[8, 4, 2], [9, 9, 0]],
        {"step_seconds": {"decode": steps}},
    )
    assert value("sapwood_running") == 1
    assert value("sapwood_engine_steps_total") == 2
    assert value("sapwood_engine_somersaults_total") == 3  # of whoever else takes part
    assert value("sapwood_engine_drafts_total", {"drafter": "lookup"}) == 8
    assert value("sapwood_engine_accepted_drafts_total", {"drafter": "lookup"}) == 6
    assert value("sapwood_pages", {"group": "1", "state": "total"}) == 9
    assert value("sapwood_pages", {"group": "0", "state": "used"}) == 2
    name, labels = "sapwood_engine_step_seconds", {"kind": "decode"}
    assert [value(f"{name}_bucket", labels | {"le": le}) for le in ("0.1", "1.0", "+Inf")] == [1, 2, 3]
    assert value(f"{name}_sum", labels) == pytest.approx(5.55)


def test_what_the_engine_is() -> None:
    watched = Watched()
    _, registry = measure(watched)
    value = registry.get_sample_value
    assert value("sapwood_engine_info", {"device": "cpu", "dtype": "float32", "attention": "none"}) == 1
    assert value("sapwood_max_model_len") == 100
    assert (value("sapwood_engine_up"), value("sapwood_engine_restarts_total")) == (1, 0)
    watched.dead, watched.restarts = "it hung", 2
    assert (value("sapwood_engine_up"), value("sapwood_engine_restarts_total")) == (0, 2)
    assert value("sapwood_start_seconds", {"part": "weights"}) == 1.5
