"""What every benchmark is: a target is put under a load, what happens becomes figures, and these a row of the report.

Targets are the host alone (`host.Host`), an engine in this process (`offline.Offline`) and a server (`load.Serving`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from sapwood.bench.report import Row
from sapwood.bench.statistics import Figures, median_of

Load = TypeVar("Load", contravariant=True)


class Target(Protocol[Load]):
    def row(self, load: Load) -> Row:
        """What is to be measured, without figures yet."""

    def runs(self, load: Load, row: Row) -> Iterator[Figures]:
        """Put it under the load, time and again; figures of each run. Notes and errors go to the row."""


def measure(target: Target[Load], loads: Iterable[Load]) -> Iterator[Row]:
    """A row per load; figures are medians over its runs."""
    for load in loads:
        row = target.row(load)
        row.runs = list(target.runs(load, row))
        row.figures = median_of(row.runs) | row.figures
        yield row
