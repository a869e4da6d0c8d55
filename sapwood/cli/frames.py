"""One frame of `sapwood top`: a running server as a picture of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sapwood.cli.looks import Figures, Looks

_BARS = " ▁▂▃▄▅▆▇█"
_CURVE = 40  # looks of a curve that are shown
_LANE = 28  # characters of a lane
_WIDE = 118  # columns of both panels beside each other
_STYLES = {"used": "green", "cached": "yellow", "free": "bright_black", "output": "cyan", "rest": "bright_black"}
_PHASES = {"output": "cyan", "prompt": "green", "waiting": "yellow", "aside": "yellow"}


def frame(looks: Looks, *, most_lanes: int, url: str) -> RenderableType:
    """What there is to see now: at most `most_lanes` requests one by one."""
    last, lately = looks.last, looks.lately
    return Group(
        _head(last, url),
        Columns([_numbers(looks, lately), _cache(last, lately)], padding=(0, 1)),
        _lanes(last["lanes"], most_lanes),
    )


def lines_beside_lanes(width: int) -> int:
    """How many lines of a frame there are beside its requests, with one below it: on a narrow terminal panels stand one upon the
    other."""
    return 14 if width >= _WIDE else 20


def _head(last: Mapping[str, Any], url: str) -> Text:
    head = Text.assemble(
        ("sapwood top", "bold green"),
        f"  {last['model']}",
        (f"  {url}", "dim"),
        "  up ",
        duration(last.get("uptime", 0)),
    )
    head.append(f"  {last.get('device', '')} {last.get('dtype', '')}", "dim")
    head.append(f"\n{last['running']}", "bold")
    head.append(f" of {last.get('max_num_seqs', '?')} running, ")
    head.append(str(last["waiting"]), "bold yellow" if last["waiting"] else "bold")
    head.append(" waiting")
    return head


def _numbers(looks: Looks, lately: Figures) -> Panel:
    """Throughput and latency, with curves of the latest looks."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    curves = looks.curves
    table.add_row("output", f"{lately.output:.1f} tok/s", curve(curves["output"]))
    table.add_row("prompts", f"{lately.computed + lately.cached:.1f} tok/s", curve(curves["prompt"]))
    table.add_row("first token", _pair(lately.first_token), curve(curves["first_token"]))
    table.add_row("next token", _pair(lately.inter_token), curve(curves["inter_token"]))
    table.add_row("running", str(looks.last["running"]), curve(curves["running"]))
    table.add_row(
        "steps", f"{lately.steps:.1f} /s", f"host {lately.host:.0%}, waiting for the device {lately.busy:.0%}"
    )
    return Panel(
        table,
        title="speed",
        title_align="left",
        subtitle="times: median / 95th percentile",
        subtitle_align="right",
        box=box.ROUNDED,
        border_style="dim",
    )


def _cache(last: Mapping[str, Any], lately: Figures) -> Panel:
    lines = []
    for index, (total, free, evictable) in enumerate(last["pages"]):
        used = total - free - evictable
        bar = segments([("used", used), ("cached", evictable), ("free", free)], width=32)
        lines.append(Text.assemble(f"{index} " if len(last["pages"]) > 1 else "", bar, f" {share(used, total)} used"))
        lines.append(Text(f"{used} used, {evictable} cached, {free} free of {total} pages", "dim"))
    hits = "no prompts" if lately.hit_rate is None else f"{lately.hit_rate:.0%} of prompt tokens were cached"
    lines.append(Text(hits))
    counters = last["counters"]
    told = {"evicted": "evicted_pages", "preempted": "preemptions", "errors": "errors"}
    lines.append(Text(", ".join(f"{counters.get(name, 0)} {word}" for word, name in told.items()), "dim"))
    return Panel(Group(*lines), title="KV cache", title_align="left", box=box.ROUNDED, border_style="dim")


def _lanes(lanes: Sequence[Mapping[str, Any]], most: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("request", "phase"):
        table.add_column(name, no_wrap=True)
    table.add_column("cached, prompt, output, up to its limit", no_wrap=True)
    for name in ("prompt", "cached", "output", "age", "priority"):
        table.add_column(name, justify="right", no_wrap=True)
    for lane in lanes[:most]:
        cached = max(lane["cached"], 0)
        table.add_row(
            str(lane["id"]),
            Text(lane["phase"], _PHASES.get(lane["phase"], "")),
            _lane(lane),
            str(lane["prompt"]),
            str(cached) if lane["cached"] >= 0 else "-",
            str(lane["output"]),
            duration(lane["age"]),
            str(lane["priority"]),
        )
    if not lanes:
        return Text("\nno requests", "dim")
    left = len(lanes) - most
    return Group(Text(), table, Text(f"... and {left} more" if left > 0 else "", "dim"))


def _lane(lane: Mapping[str, Any]) -> Text:
    """A request as a bar: what was cached, what was computed of its prompt, its output, and what may still come."""
    cached = max(lane["cached"], 0)
    computed = max(min(lane["computed"], lane["prompt"]) - cached, 0)
    output = lane["output"]
    rest = max(lane["limit"] - cached - computed - output, 0)
    return segments([("cached", cached), ("used", computed), ("output", output), ("rest", rest)], width=_LANE)


def segments(parts: Iterable[tuple[str, float]], *, width: int) -> Text:
    """A bar of parts, each as long as its share; they fill the width together."""
    parts = list(parts)
    total, text, at, sum_ = sum(size for _, size in parts) or 1, Text(), 0, 0.0
    signs = {"free": "·", "rest": "·", "cached": "▒"}
    for name, size in parts:
        sum_ += size
        end = round(width * sum_ / total)
        text.append(signs.get(name, "█") * (end - at), _STYLES[name])
        at = end
    return text


def curve(values: Iterable[float]) -> Text:
    """The latest values as a row of bars, the highest of them full."""
    shown = list(values)[-_CURVE:]
    top = max(shown, default=0.0) or 1.0
    return Text("".join(_BARS[min(int(value / top * 8 + 0.999), 8)] for value in shown).ljust(_CURVE), "green")


def share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def duration(seconds: float) -> str:
    """A length of time in at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} m {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} m" if minutes < 1440 else f"{minutes // 1440} d {minutes // 60 % 24} h"


def _pair(quantiles: Mapping[int, float | None]) -> str:
    """Median and 95th percentile."""
    return " / ".join("-" if value is None else f"{1000 * value:.0f}" for value in quantiles.values()) + " ms"
