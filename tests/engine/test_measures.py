"""What the loop measures of itself, on the fake device."""

from __future__ import annotations

import pytest

from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta, Submit
from sapwood.engine.loop import Engine
from tests.engine.test_loop import make


def run(engine: Engine) -> list[Delta]:
    news = []
    while not engine.idle:
        news += [delta for deltas in engine.step() for delta in deltas.deltas]
    return news


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_every_step_is_measured_once(depth: int) -> None:
    engine, _ = make(depth)
    for id in range(6):
        engine.submit(Submit(id, [5, id, *[6] * 9], SamplingParams(max_tokens=6)))
    run(engine)
    stats = engine.stats()
    told, num_steps = stats.histograms, stats.counters["steps"]
    assert sum(sum(one.counts) for one in told["step_seconds"].values()) == num_steps
    assert sum(told["step_host_seconds"][""].counts) == num_steps
    for kind, one in told["step_tokens"].items():
        assert sum(one.counts) == sum(told["step_seconds"][kind].counts) > 0, kind
    fed = stats.counters["prompt_tokens"]
    assert sum(one.total for one in told["step_tokens"].values()) == fed + 6 * 5  # of each output all but the last
    assert told["step_host_seconds"][""].total == pytest.approx(stats.seconds["host_seconds"])


def test_waits_are_told_with_the_first_news_and_grow_with_the_queue() -> None:
    engine, _ = make(1)
    for id in range(8):  # in four slots
        engine.submit(Submit(id, [5, id, 6], SamplingParams(max_tokens=4, logprobs=0)))
    news = run(engine)
    waits = {delta.id: delta.waited for delta in news if delta.cached_tokens >= 0}
    assert sorted(waits) == list(range(8)) and all(wait >= 0 for wait in waits.values())
    assert all(delta.waited == -1 for delta in news if delta.cached_tokens < 0)
    assert max(waits[id] for id in range(4)) < min(waits[id] for id in range(4, 8))


def test_who_is_preempted_has_waited_once() -> None:
    engine, _ = make(0)
    engine.submit(Submit(1, [5, 6, 7], SamplingParams(max_tokens=30, logprobs=0)))
    engine.step()
    (request,) = engine.scheduler.running()
    waited = request.waited
    engine.scheduler._roster.preempt(request)
    news = run(engine)
    assert request.waited == waited >= 0
    assert [delta.waited for delta in news if delta.waited >= 0] == []  # told before
