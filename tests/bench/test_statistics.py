"""Figures of streams and steps whose every number is known."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.bench.statistics import (
    Step,
    Stream,
    decode_seconds,
    median_of,
    meets,
    peak,
    serving_figures,
    spread,
)


def stream(sent: float, first: float, gap: float, count: int, **fields: object) -> Stream:
    times = [sent + first + gap * i for i in range(count)]
    made = Stream(sent, times, ended=times[-1], num_prompt=10, num_output=count)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_percentiles_are_numpy_s() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 10, 101):
        values = rng.random(count).tolist()
        for share in (50, 90, 99):
            assert spread("x", values)[f"x_p{share}"] == pytest.approx(1e3 * float(np.percentile(values, share)))


def test_spread() -> None:
    assert spread("x", [0.001, 0.003]) == {
        "x_mean": pytest.approx(2),
        "x_p50": pytest.approx(2),
        "x_p90": pytest.approx(2.8),
        "x_p99": pytest.approx(2.98),
    }
    assert spread("x", []) == {"x_mean": None, "x_p50": None, "x_p90": None, "x_p99": None}


def test_a_stream_s_own_figures() -> None:
    one = stream(5.0, 0.25, 0.5, 3)
    assert (one.ttft, one.e2e, one.tpot, one.gaps) == (0.25, 1.25, 0.5, [0.5, 0.5])
    several = stream(0.0, 1.0, 1.0, 3, num_output=9)  # three tokens a chunk
    assert several.tpot == pytest.approx(2 / 8)
    assert stream(0.0, 1.0, 1.0, 1).tpot is None


def test_figures_of_a_load() -> None:
    streams = [
        stream(10.0, 0.1, 0.02, 11, num_cached=4),  # ends at 10.3
        stream(10.1, 0.2, 0.04, 6),  # ends at 10.5
        Stream(10.2, [], ended=12.0, error="HTTP 503"),
    ]
    figures = serving_figures(streams, {"ttft": 150, "tpot": 30})
    want = {
        "requests": 3,
        "failed": 1,
        "seconds": 2.0,
        "request_s": 1.0,
        "output_tok_s": 17 / 2,
        "total_tok_s": 37 / 2,
        "prompt_tokens": 20,
        "output_tokens": 17,
        "cached_tokens": 4,
        "peak_concurrency": 3,
        "mean_concurrency": (0.3 + 0.4 + 1.8) / 2,
        "ttft_ms_mean": 150,
        "ttft_ms_p50": 150,
        "tpot_ms_p50": 30,
        "itl_ms_mean": (10 * 20 + 5 * 40) / 15,
        "e2e_ms_p50": 350,
        "goodput_s": 0.5,  # the second is too slow, the third failed
        "slo_share": 1 / 3,
    }
    assert {name: figures[name] for name in want} == pytest.approx(want)
    assert "goodput_s" not in serving_figures(streams)


def test_a_load_of_which_nothing_succeeded() -> None:
    figures = serving_figures([Stream(1.0, ended=1.5, error="timeout")], {"ttft": 1})
    assert figures["ttft_ms_p50"] is None
    assert (figures["failed"], figures["goodput_s"], figures["output_tok_s"]) == (1, 0.0, 0.0)
    assert serving_figures([])["seconds"] == 0.0


def test_bounds_that_cannot_be_measured_are_met() -> None:
    one = stream(0.0, 0.4, 1.0, 1)
    assert meets(one, {"tpot": 1, "ttft": 401, "e2e": 401})
    assert not meets(one, {"e2e": 399})


def test_most_streams_at_once() -> None:
    assert peak([(0, 2), (1, 3), (2, 4), (5, 6)]) == 2
    assert peak([]) == 0


def test_decode_steps_are_those_without_prompt_tokens() -> None:
    steps = [Step(0.5, 1, 100), Step(0.1, 3, 0), Step(0.2, 4, 0), Step(0.3, 0, 0), Step(0.4, 4, 0)]
    assert decode_seconds(steps) == [0.1, 0.2, 0.4]
    assert decode_seconds(steps, batch=4) == [0.2, 0.4]


def test_medians_leave_out_what_is_missing() -> None:
    runs = [{"a": 1.0, "b": None}, {"a": 5.0, "b": 2.0}, {"a": 2.0, "c": 1.0}]
    assert median_of(runs) == {"a": 2.0, "b": 2.0, "c": 1.0}
    assert median_of([{"a": None}]) == {"a": None}
    assert median_of([]) == {}
