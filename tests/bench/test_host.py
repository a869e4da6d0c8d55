"""The host alone, and the executor that makes it so."""

from __future__ import annotations

import pytest

from sapwood.bench.host import Host
from sapwood.bench.target import measure


@pytest.mark.parametrize("host", [Host(num_steps=40), Host(num_steps=40, prefix_len=100, depth=0, repeat=2)])
def test_every_step_is_measured(host: Host) -> None:
    rows = list(measure(host, [3, 40]))
    assert [row.load["sequences"] for row in rows] == [3, 40]
    for row in rows:
        assert len(row.runs) == host.repeat
        figures = row.figures
        assert figures["steps"] == 40
        # A step is planning, committing and what the loop adds.
        assert (figures["step_us_mean"] or 0) > (figures["plan_us_mean"] or 0) + (figures["commit_us_mean"] or 0) > 0
        assert (figures["plan_us_p99"] or 0) >= (figures["plan_us_p50"] or 0)


def test_all_sequences_run_while_it_is_measured() -> None:
    engine, scheduler = Host().engine(16)
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert engine.executor.tidy() is False
