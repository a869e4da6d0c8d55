"""The host alone, and the executor that makes it so."""

from __future__ import annotations

import pytest

from sapwood.bench import host
from sapwood.bench.host import Settings


@pytest.mark.parametrize(
    "settings", [Settings(num_steps=40), Settings(num_steps=40, prefix_len=100, depth=0, repeat=2)]
)
def test_every_step_is_measured(settings: Settings) -> None:
    rows = list(host.measure([3, 40], settings))
    assert [row.load["sequences"] for row in rows] == [3, 40]
    for row in rows:
        assert len(row.runs) == settings.repeat
        figures = row.figures
        assert figures["steps"] == 40
        # A step is planning, committing and what the loop adds.
        assert (figures["step_us_mean"] or 0) > (figures["plan_us_mean"] or 0) + (figures["commit_us_mean"] or 0) > 0
        assert (figures["plan_us_p99"] or 0) >= (figures["plan_us_p50"] or 0)


def test_all_sequences_run_while_it_is_measured() -> None:
    engine, scheduler = host._engine(16, Settings())
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert engine.executor.tidy() is False
