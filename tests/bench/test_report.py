"""Reports: what is kept, how two are compared, what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.base.errors import UserError
from sapwood.bench import report
from sapwood.bench.report import Report, Row


def row(name: str = "W1", batch: int = 1, **figures: float | None) -> Row:
    return Row(kind="latency", name=name, model="m", load={"batch": batch}, figures=dict(figures))


def test_a_saved_report_is_read_as_it_was(tmp_path: Path) -> None:
    made = report.new_report({"scale": 0.5, "engine": {"depth": 1}})
    made.rows += [
        row(step_ms_p50=1.5, decode_tok_s=None),
        Row(kind="serve", name="x", error="no", errors={"HTTP 503": 2}),
    ]
    report.save(made, tmp_path / "a.json")
    assert report.load(tmp_path / "a.json") == made
    assert made.versions.keys() >= {"sapwood", "python", "torch"}
    assert made.machine.keys() >= {"processor", "cores", "system"}
    assert made.date.endswith("+00:00")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": [{"kind": 3}]}', '{"format": 99}'])
def test_files_that_are_no_reports(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="--compare"):
        report.load(tmp_path / "a.json")


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--compare"):
        report.load(tmp_path / "missing.json")
    with pytest.raises(UserError, match="--json"):
        report.save(Report(), tmp_path / "missing" / "a.json")


def test_better_and_worse() -> None:
    old = Report(rows=[row(step_ms_p50=10.0, decode_tok_s=100.0, host_us=50.0, steps=7.0, failed=0.0)])
    new = Report(rows=[row(step_ms_p50=8.0, decode_tok_s=90.0, host_us=50.5, steps=9.0, failed=1.0)])
    found = {change.figure: (change.ratio, change.verdict) for change in report.compare(old, new)}
    assert found == {
        "step_ms_p50": (0.8, "better"),
        "decode_tok_s": (0.9, "worse"),
        "host_us": (1.01, "same"),
        "steps": (9 / 7, ""),
        "failed": (None, "worse"),
    }


def test_only_measurements_of_the_same_load_are_compared() -> None:
    old = Report(rows=[row(batch=1, host_us=1.0), row(batch=2, host_us=None), row("W2", host_us=3.0)])
    new = Report(rows=[row(batch=1, host_us=2.0), row(batch=2, host_us=2.0), row(batch=3, host_us=2.0)])
    assert [(change.old, change.new) for change in report.compare(old, new)] == [(1.0, 2.0)]


def test_tables_show_what_there_is() -> None:
    rows = [row(step_ms_p50=1.234, output_tok_s=12_345.6), row(batch=2, step_ms_p50=None)]
    rows.append(Row(kind="start", name="start", figures={"ready_s": 2.0}))
    latency, start = report.tables(rows)
    assert latency.header == ["latency", "step ms p50", "output tok/s"]
    assert latency.rows == [["m W1 (batch 1)", "1.23", "12,346"], ["m W1 (batch 2)", "-", "-"]]
    assert start.rows == [["start", "2.0"]]


def test_lines() -> None:
    assert report.line(row(step_ms_p50=2.0)) == "m W1 (batch 1): step ms p50 2.00"
    failed = row()
    failed.error = "it broke"
    assert report.line(failed) == "m W1 (batch 1): FAILED: it broke"
    assert Report(rows=[failed]).failed
    assert Report(rows=[row(failed=1.0)]).failed
    assert not Report(rows=[row(failed=0.0)]).failed


def test_a_table_has_columns_in_one_order() -> None:
    one = Row(
        kind="serve", name="x", figures={"ttft_ms_p99": 1.0, "ttft_ms_p90": 1.0, "failed": 0.0, "client_cpu": None}
    )
    assert report.columns("serve", one) == ["failed", "ttft_ms_p99"]
    assert report.columns("start", one) == ["ttft_ms_p99", "ttft_ms_p90", "failed"]
