"""What a fleet's rows look like: hit rate, goodput and tail against the number of replicas or the load, a line for each policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = {"hit_%": "prompt tokens from caches, %", "good_%": "good answers, %", "ttft_p99_ms": "TTFT p99, ms"}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    over = "rate" if len({row["replicas"] for row in rows}) == 1 else "replicas"
    picture = Figure(figsize=(5 * len(PANELS), 3.6), layout="constrained")
    for axes, (name, title) in zip(picture.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            points = [(row[over], row[name]) for row in rows if row["policy"] == policy]
            axes.plot(*zip(*points, strict=True), marker="o", label=policy)
        axes.set(title=title, xlabel="sessions a second, of each replica" if over == "rate" else over)
        if over == "replicas":
            axes.set_xscale("log", base=2)
        if name.endswith("_ms"):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    picture.savefig(path)
