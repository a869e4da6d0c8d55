"""Figures as pictures: latency against load, steps against batch. Needs matplotlib, the extra `sapwood[plot]`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sapwood.base.errors import UserError
from sapwood.bench.report import Row, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")


class Panel(NamedTuple):
    """Figures over one number of the rows' loads; over the rows' names where `over` is empty."""

    kind: str
    title: str
    over: tuple[str, ...]
    figures: tuple[str, ...]
    unit: str


_LOADS = {"rate": "sessions a second", "concurrency": "sessions at once"}
PANELS = (
    Panel("serve", "time to first token", tuple(_LOADS), ("ttft_ms_p50", "ttft_ms_p99"), "ms"),
    Panel("serve", "time per output token", tuple(_LOADS), ("tpot_ms_p50", "tpot_ms_p99"), "ms"),
    Panel("serve", "throughput", tuple(_LOADS), ("output_tok_s",), "tokens/s"),
    Panel("latency", "time of a decode step", ("batch",), ("step_ms_p50", "step_ms_p99"), "ms"),
    Panel("latency", "throughput", ("batch",), ("decode_tok_s",), "tokens/s"),
    Panel("host", "host time of a step", ("sequences",), ("step_us_p50", "plan_us_p50", "commit_us_p50"), "us"),
    Panel("throughput", "throughput", (), ("output_tok_s", "prompt_tok_s"), "tokens/s"),
)


def check(path: Path) -> None:
    """Raises UserError if nothing could be drawn there; asked before anything is measured."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--plot {path}: the name must end in {' or '.join(SUFFIXES)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'sapwood[plot]'.")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw every panel that the rows have figures for. Raises UserError, naming --plot."""
    from matplotlib.figure import Figure

    good = [row for row in rows if row.error is None]
    panels = [panel for panel in PANELS if any(row.kind == panel.kind for row in good)]
    if not panels:
        raise UserError(f"--plot {path}: there is nothing to draw.")
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel, [row for row in good if row.kind == panel.kind])
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"--plot {path}: {error.strerror or error}.") from error


def points(panel: Panel, rows: Sequence[Row], figure: str) -> list[tuple[float, float]]:
    """(load, figure) of the rows that have both, by load."""
    pairs = [(next((row.load[name] for name in panel.over if name in row.load), None), row) for row in rows]
    return sorted(
        (float(load), value)
        for load, row in pairs
        if isinstance(load, int | float) and (value := row.figures.get(figure)) is not None
    )


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    axes.set_title(panel.title)
    if panel.over:
        for model in dict.fromkeys(row.model for row in rows):
            for name in panel.figures:
                if line := points(panel, [row for row in rows if row.model == model], name):
                    axes.plot(*zip(*line, strict=True), marker="o", label=f"{model} {title_of(name)}".strip())
        over = next((name for row in rows for name in panel.over if name in row.load), panel.over[0])
        axes.set_xlabel(_LOADS.get(over, over))
        axes.set_ylim(bottom=0)
        axes.margins(y=0.1)
    else:
        width = 0.8 / len(panel.figures)
        for index, name in enumerate(panel.figures):
            places = [place + index * width for place in range(len(rows))]
            axes.bar(places, [row.figures.get(name) or 0 for row in rows], width, label=title_of(name))
        axes.set_xticks(range(len(rows)), [row.title for row in rows], rotation=30, ha="right", fontsize="small")
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
