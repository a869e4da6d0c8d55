"""What a benchmark found: rows of figures, the machine and the options; as a table, as JSON, beside an earlier run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from sapwood import __version__
from sapwood.base.errors import UserError
from sapwood.bench.statistics import SPREAD, Figures

FORMAT = 1
SAME = 0.02
"""Ratios within this of 1 are called the same: repeated runs differ by as much."""


class Figure(NamedTuple):
    """How a figure is shown, which way is better (None where neither is), and of which benchmarks it is a column."""

    title: str
    better: Literal["higher", "lower"] | None = None
    digits: int = 0
    shown: Sequence[str] = ()


def _spread(name: str, title: str, digits: int, **shown: str) -> dict[str, Figure]:
    """Mean and percentiles; `shown` says which of them a benchmark has as columns."""
    kinds = {key: [kind for kind, keys in shown.items() if key in keys.split()] for key in SPREAD}
    return {f"{name}_{key}": Figure(f"{title} {key}", "lower", digits, kinds[key]) for key in SPREAD}


_OFFLINE = ("throughput", "latency")
FIGURES: Mapping[str, Figure] = MappingProxyType(
    {
        "ready_s": Figure("ready s", "lower", 1),
        "requests": Figure("requests", shown=["serve"]),
        "failed": Figure("failed", "lower", shown=["serve"]),
        "request_s": Figure("requests/s", "higher", 2, ["serve"]),
        **_spread("plan_us", "plan us", 1, host="p50 p99"),
        **_spread("commit_us", "commit us", 1, host="p50 p99"),
        **_spread("step_us", "step us", 1, host="p50 p99"),
        **_spread("step_ms", "step ms", 2, latency="p50 p90 p99"),
        "decode_tok_s": Figure("decode tok/s", "higher", shown=["latency"]),
        "output_tok_s": Figure("output tok/s", "higher", shown=[*_OFFLINE, "serve"]),
        "prompt_tok_s": Figure("prompt tok/s", "higher", shown=["throughput"]),
        "total_tok_s": Figure("total tok/s", "higher", shown=["throughput"]),
        "drafts": Figure("drafts", shown=_OFFLINE),
        "acceptance": Figure("acceptance", "higher", 2, _OFFLINE),
        "decode_ms": Figure("decode ms", "lower", 2, ["throughput"]),
        **_spread("ttft_ms", "TTFT ms", 1, serve="p50 p99", latency="p50"),
        "ttft_ms_max": Figure("TTFT ms max", "lower", 1, ["latency"]),
        **_spread("itl_ms", "ITL ms", 2, serve="p50 p99"),
        **_spread("tpot_ms", "TPOT ms", 2, serve="p50 p99"),
        **_spread("e2e_ms", "E2E ms", 0, serve="p50"),
        "steps": Figure("steps", shown=["throughput"]),
        "host_us": Figure("host us/step", "lower", shown=_OFFLINE),
        "prompt_tokens": Figure("prompt tokens"),
        "output_tokens": Figure("output tokens"),
        "cached_tokens": Figure("cached tokens", "higher", shown=["throughput"]),
        "preemptions": Figure("preempted", "lower", shown=["throughput"]),
        "mean_concurrency": Figure("mean streams", digits=1),
        "peak_concurrency": Figure("peak streams"),
        "goodput_s": Figure("goodput/s", "higher", 2, ["serve"]),
        "slo_share": Figure("within SLO", "higher", 3, ["serve"]),
        "client_cpu": Figure("client CPU", "lower", 2, ["serve"]),
        "late_ms_p99": Figure("sent late ms p99", "lower", 1),
        "seconds": Figure("seconds", None, 2, ["throughput"]),
    }
)
"""In the order of a table's columns. A row may have others too, such as the parts of a start."""


def figure(name: str) -> Figure:
    return FIGURES.get(name) or Figure(name, digits=2)


class Row(msgspec.Struct, kw_only=True):
    """One measurement. `load` tells it from others of the same name: batch, rate, scale. `figures` are medians of `runs`."""

    kind: str
    name: str
    model: str = ""
    load: dict[str, float | int | str] = {}
    figures: Figures = {}
    runs: list[Figures] = []
    notes: list[str] = []
    errors: dict[str, int] = {}
    error: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for measurements that may be compared."""
        return (self.kind, self.name, self.model, *sorted((k, str(v)) for k, v in self.load.items()))

    @property
    def title(self) -> str:
        values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in self.load.items()}
        load = ", ".join(f"{name} {value}" for name, value in values.items())
        return " ".join(part for part in (self.model, self.name, f"({load})" if load else "") if part)


class Report(msgspec.Struct, kw_only=True):
    """Everything about a run that someone may want to know later."""

    rows: list[Row] = []
    config: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    date: str = ""
    format: int = FORMAT

    @property
    def failed(self) -> bool:
        return any(row.error is not None or row.figures.get("failed") for row in self.rows)


def new_report(config: dict[str, Any]) -> Report:
    """An empty report of here and now."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(config=config, machine=machine(), versions=versions(), date=date)


def machine() -> dict[str, Any]:
    """What figures depend on. The GPU is named only once torch has been imported; it is not for this."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        found["processor"] = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return found


def versions() -> dict[str, str]:
    found = {"sapwood": __version__, "python": platform.python_version()}
    for name in ("torch", "triton", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    torch = sys.modules.get("torch")
    return found | ({"cuda": torch.version.cuda} if torch is not None and torch.version.cuda else {})


def save(report: Report, path: Path) -> None:
    """Write it as JSON. Raises UserError, naming --json."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror or error}.") from error


def load(path: Path) -> Report:
    """Read what `save` wrote. Raises UserError, naming --compare."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise UserError(f"--compare {path}: {error.strerror or error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--compare {path} is no report of `sapwood bench`: {error}.") from error
    if report.format != FORMAT:
        raise UserError(f"--compare {path} has format {report.format}; this version reads {FORMAT}.")
    return report


class Change(NamedTuple):
    """One figure beside an earlier run's. `ratio` is new over old; `verdict` empty where neither way is better."""

    row: str
    figure: str
    old: float
    new: float

    @property
    def ratio(self) -> float | None:
        return self.new / self.old if self.old else None

    @property
    def verdict(self) -> Literal["better", "worse", "same", ""]:
        better = figure(self.figure).better
        if better is None:
            return ""
        if self.new == self.old or (self.ratio is not None and abs(self.ratio - 1) <= SAME):
            return "same"
        return "better" if (self.new > self.old) == (better == "higher") else "worse"


def compare(old: Report, new: Report) -> list[Change]:
    """Every figure that both have, of rows with the same name, model and load."""
    before = {row.key: row.figures for row in old.rows}
    return [
        Change(row.title, name, earlier, value)
        for row in new.rows
        for name, value in row.figures.items()
        if value is not None and (earlier := before.get(row.key, {}).get(name)) is not None
    ]


# -- tables -------------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    header: list[str]
    rows: list[list[str]]


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table per kind of benchmark: a line per row, a column per figure that any of them has."""
    found = []
    for kind in dict.fromkeys(row.kind for row in rows):
        some = [row for row in rows if row.kind == kind]
        names = columns(kind, *some)
        lines = [[row.title, *(shown_as(name, row.figures.get(name)) for name in names)] for row in some]
        found.append(Table([kind, *(figure(name).title for name in names)], lines))
    return found


def columns(kind: str, *rows: Row) -> list[str]:
    """The figures that a table of this benchmark shows, or all where it says nothing, which any of the rows has."""
    had = dict.fromkeys(name for row in rows for name, value in row.figures.items() if value is not None)
    return [name for name, known in FIGURES.items() if kind in known.shown and name in had] or list(had)


def spreads(row: Row) -> Table:
    """All latencies of a server's row: mean and percentiles, a line per measure."""
    measures = {name: [f"{name}_{key}" for key in SPREAD] for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")}
    lines = [
        [figure(names[0]).title.removesuffix(" mean"), *(shown_as(name, row.figures[name]) for name in names)]
        for names in measures.values()
        if row.figures.get(names[0]) is not None
    ]
    return Table(["latency", *SPREAD], lines)


def change_table(changes: Iterable[Change]) -> Table:
    lines = []
    for change in changes:
        values = [shown_as(change.figure, value) for value in (change.old, change.new)]
        ratio = f"{change.ratio:.3f}" if change.ratio is not None else "-"
        lines.append([change.row, figure(change.figure).title, *values, ratio, change.verdict])
    return Table(["compared", "figure", "before", "now", "ratio", ""], lines)


def line(row: Row) -> str:
    """A row on one line, for watching a long run."""
    if row.error is not None:
        return f"{row.title}: FAILED: {row.error}"
    shown = [f"{figure(name).title} {shown_as(name, row.figures[name])}" for name in columns(row.kind, row)]
    return f"{row.title}: {'; '.join([*shown, *row.notes])}"


def shown_as(name: str, value: float | None) -> str:
    """A figure with the digits that it deserves; '-' where there is none."""
    return "-" if value is None else f"{value:,.{figure(name).digits}f}"
