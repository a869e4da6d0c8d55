"""Pictures: what is drawn over what, and what is said where it cannot be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sapwood.base.errors import UserError
from sapwood.bench import plot
from sapwood.bench.report import FIGURES, Row

ROWS = [
    Row(
        kind="serve",
        name="agent",
        model="m",
        load={"rate": load},
        figures={"ttft_ms_p50": 10 * load, "ttft_ms_p99": None},
    )
    for load in (8.0, 2.0)
] + [
    Row(kind="latency", name="W5 decode", load={"batch": 1}, figures={"step_ms_p50": 1.0, "decode_tok_s": 5.0}),
    Row(kind="latency", name="W5 decode", load={"batch": 2}, error="no"),
    Row(kind="throughput", name="W1 uniform", figures={"output_tok_s": 5.0, "prompt_tok_s": None}),
]


def test_points_are_in_order_of_the_load() -> None:
    assert plot.points(ROWS[:2], "ttft_ms_p50") == [(2.0, 20.0), (8.0, 80.0)]
    assert plot.points(ROWS[:2], "ttft_ms_p99") == []


def test_panels_are_of_known_figures() -> None:
    assert {name for panel in plot.PANELS for name in panel.figures} <= set(FIGURES)
    assert {panel.kind for panel in plot.PANELS} == {kind for known in FIGURES.values() for kind in known.shown}


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_pictures(name: str, start: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot.check(tmp_path / name)
    plot.draw(ROWS, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_pictures_that_cannot_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(UserError, match=r"\.svg or \.png"):
        plot.check(tmp_path / "a.pdf")
    with pytest.raises(UserError, match="nothing to draw"):
        plot.draw(ROWS[3:4], tmp_path / "a.png")
    with pytest.raises(UserError, match="--plot"):
        plot.draw(ROWS, tmp_path / "missing" / "a.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sapwood\[plot\]'"):
        plot.check(Path("a.png"))
