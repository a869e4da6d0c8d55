"""Figures as pictures: latency against load, steps against batch. Needs matplotlib, the extra `sapwood[plot]`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sapwood.base.errors import UserError
from sapwood.bench.report import Row, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")


class Panel(NamedTuple):
    """Figures of one kind of benchmark: over its load, or over the names of its rows if `bars`."""

    kind: str
    title: str
    figures: Sequence[str]
    unit: str
    bars: bool = False


PANELS = (
    Panel("serve", "time to first token", ["ttft_ms_p50", "ttft_ms_p99"], "ms"),
    Panel("serve", "time per output token", ["tpot_ms_p50", "tpot_ms_p99"], "ms"),
    Panel("serve", "throughput", ["output_tok_s"], "tokens/s"),
    Panel("latency", "time of a decode step", ["step_ms_p50", "step_ms_p99"], "ms"),
    Panel("latency", "throughput", ["decode_tok_s"], "tokens/s"),
    Panel("host", "host time of a step", ["step_us_p50", "plan_us_p50", "commit_us_p50"], "us"),
    Panel("throughput", "throughput", ["output_tok_s", "prompt_tok_s"], "tokens/s", bars=True),
)
_LOADS = {"rate": "sessions a second", "concurrency": "sessions at once"}


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
    picture = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(picture.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel, [row for row in good if row.kind == panel.kind])
    try:
        picture.savefig(path)
    except OSError as error:
        raise UserError(f"--plot {path}: {error.strerror or error}.") from error


def points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(load, figure) of the rows that have both, by load: the first number that tells a row from others of its name."""
    pairs = [(next(iter(row.load.values()), None), row.figures.get(name)) for row in rows]
    return sorted((load, value) for load, value in pairs if isinstance(load, int | float) and value is not None)


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    if panel.bars:
        width = 0.8 / len(panel.figures)
        for index, name in enumerate(panel.figures):
            places = [place + index * width for place in range(len(rows))]
            axes.bar(places, [row.figures.get(name) or 0 for row in rows], width, label=figure(name).title)
        axes.set_xticks(range(len(rows)), [row.title for row in rows], rotation=30, ha="right", fontsize="small")
    else:
        for model, name in product(dict.fromkeys(row.model for row in rows), panel.figures):
            if line := points([row for row in rows if row.model == model], name):
                axes.plot(*zip(*line, strict=True), marker="o", label=f"{model} {figure(name).title}".strip())
        over = next(iter(rows[0].load))
        axes.set(xlabel=_LOADS.get(over, over), ylim=(0, None))
        axes.margins(y=0.1)
    axes.set(title=panel.title, ylabel=panel.unit)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
