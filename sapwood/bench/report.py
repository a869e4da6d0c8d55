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
    """How a figure is shown, and which way is better; None where neither is."""

    title: str
    better: Literal["higher", "lower"] | None
    digits: int = 0


_LATENCIES = {
    "step_ms": ("step ms", 2), "ttft_ms": ("TTFT ms", 1), "itl_ms": ("ITL ms", 2), "tpot_ms": ("TPOT ms", 2),
    "e2e_ms": ("E2E ms", 0), "plan_us": ("plan us", 1), "commit_us": ("commit us", 1), "step_us": ("step us", 1),
}  # fmt: skip

FIGURES: Mapping[str, Figure] = MappingProxyType(
    {
        "ready_s": Figure("ready s", "lower", 1),
        "seconds": Figure("seconds", None, 2),
        "requests": Figure("requests", None),
        "failed": Figure("failed", "lower"),
        "request_s": Figure("requests/s", "higher", 2),
        "output_tok_s": Figure("output tok/s", "higher"),
        "prompt_tok_s": Figure("prompt tok/s", "higher"),
        "total_tok_s": Figure("total tok/s", "higher"),
        "decode_tok_s": Figure("decode tok/s", "higher"),
        "decode_ms": Figure("decode ms", "lower", 2),
        "steps": Figure("steps", None),
        "host_us": Figure("host us/step", "lower"),
        "prompt_tokens": Figure("prompt tokens", None),
        "output_tokens": Figure("output tokens", None),
        "cached_tokens": Figure("cached tokens", "higher"),
        "preemptions": Figure("preempted", "lower"),
        "mean_concurrency": Figure("mean streams", None, 1),
        "peak_concurrency": Figure("peak streams", None),
        "goodput_s": Figure("goodput/s", "higher", 2),
        "slo_share": Figure("within SLO", "higher", 3),
        "client_cpu": Figure("client CPU", "lower", 2),
        "late_ms_p99": Figure("sent late ms p99", "lower", 1),
        "ttft_ms_max": Figure("TTFT ms max", "lower", 1),
        **{
            f"{name}_{key}": Figure(f"{title} {key}", "lower", digits)
            for name, (title, digits) in _LATENCIES.items()
            for key in SPREAD
        },
    }
)

_COLUMNS = {
    "throughput": "output_tok_s prompt_tok_s total_tok_s decode_ms steps host_us cached_tokens preemptions seconds",
    "latency": "step_ms_p50 step_ms_p90 step_ms_p99 decode_tok_s output_tok_s ttft_ms_p50 ttft_ms_max host_us",
    "serve": """requests failed request_s output_tok_s ttft_ms_p50 ttft_ms_p99 itl_ms_p50 itl_ms_p99 tpot_ms_p50
        tpot_ms_p99 e2e_ms_p50 goodput_s slo_share client_cpu""",
    "host": "plan_us_p50 plan_us_p99 commit_us_p50 commit_us_p99 step_us_p50 step_us_p99",
}
COLUMNS: Mapping[str, Sequence[str]] = MappingProxyType({kind: names.split() for kind, names in _COLUMNS.items()})
"""What the table of each benchmark shows, where a row has it; the JSON has everything."""


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
    with suppress(OSError):
        names = [
            line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")
        ]
        found["processor"] = names[0].partition(":")[2].strip() if names else found["processor"]
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
    if torch is not None and torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


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
        better = FIGURES[self.figure].better if self.figure in FIGURES else None
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
        shown = list(dict.fromkeys(name for name in _columns(kind, some) for row in some if _has(row, name)))
        lines = [[row.title, *(shown_as(name, row.figures.get(name)) for name in shown)] for row in some]
        found.append(Table([kind, *map(title_of, shown)], lines))
    return found


def spreads(row: Row) -> Table:
    """All latencies of one row: mean and percentiles, a line per measure."""
    lines = [
        [_LATENCIES[name][0], *(shown_as(f"{name}_{key}", row.figures.get(f"{name}_{key}")) for key in SPREAD)]
        for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
        if _has(row, f"{name}_p50")
    ]
    return Table(["latency", *SPREAD], lines)


def change_table(changes: Iterable[Change]) -> Table:
    lines = []
    for change in changes:
        values = [shown_as(change.figure, value) for value in (change.old, change.new)]
        ratio = f"{change.ratio:.3f}" if change.ratio is not None else "-"
        lines.append([change.row, title_of(change.figure), *values, ratio, change.verdict])
    return Table(["compared", "figure", "before", "now", "ratio", ""], lines)


def line(row: Row) -> str:
    """A row on one line, for watching a long run."""
    if row.error is not None:
        return f"{row.title}: FAILED: {row.error}"
    shown = [name for name in _columns(row.kind, [row]) if _has(row, name)] or list(row.figures)
    figures = [f"{title_of(name)} {shown_as(name, row.figures[name])}" for name in shown]
    return f"{row.title}: {'; '.join([*figures, *row.notes])}"


def title_of(name: str) -> str:
    return FIGURES[name].title if name in FIGURES else name


def shown_as(name: str, value: float | None) -> str:
    """A figure with the digits that it deserves; '-' where there is none."""
    return "-" if value is None else f"{value:,.{FIGURES[name].digits if name in FIGURES else 2}f}"


def _columns(kind: str, rows: Iterable[Row]) -> Sequence[str]:
    return COLUMNS.get(kind) or [name for row in rows for name in row.figures]


def _has(row: Row, name: str) -> bool:
    return row.figures.get(name) is not None
