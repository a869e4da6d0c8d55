"""What commands show: tables and progress on a terminal, plain lines into a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sapwood.config import env

if TYPE_CHECKING:
    from rich.console import Console

    from sapwood.config import Config
    from sapwood.hub.pull import Progress


def console(*, stderr: bool = False) -> Console:
    """Where to print. Without a terminal, lines are not folded."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False, no_color=env.plain() or None, soft_wrap=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=1000, soft_wrap=True)


def print_rows(out: Console, rows: Sequence[Sequence[str]], *, header: Sequence[str] = ()) -> None:
    """Columns under each other, those of numbers to the right; a last one that is none is dimmed and folds."""
    from rich.table import Table
    from rich.text import Text

    lines = [*([header] if header else []), *rows]
    columns = list(zip(*lines, strict=True))
    numbers = [all(map(_is_number, column[bool(header) :])) for column in columns]
    if not out.is_terminal:
        places = [
            (str.rjust if number else str.ljust, max(map(len, column)))
            for number, column in zip(numbers, columns, strict=True)
        ]
        for line in lines:
            cells = (place(cell, width) for cell, (place, width) in zip(line, places, strict=True))
            out.print(Text("  ".join(cells).rstrip()))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(header), header_style="bold")
    for column, number in enumerate(numbers):
        title, last = header[column] if header else "", column == len(columns) - 1 and not number
        table.add_column(
            title,
            justify="right" if number else "left",
            style="dim" if last else None,
            overflow="fold",
            no_wrap=not last,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def print_tables(out: Console, tables: Iterable[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Header and rows of each, an empty line between them."""
    for index, (header, rows) in enumerate(tables):
        if index:
            out.print()
        print_rows(out, rows, header=header)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "", 1).isdigit()


def print_decisions(out: Console, decisions: Sequence[str]) -> None:
    """Lines of 'field = value (reason)', as a table."""
    rows = []
    for line in decisions:
        field, _, rest = line.partition(" = ")
        value, reason = _parted(rest)
        rows.append((field, value, reason))
    print_rows(out, rows)


def _parted(decision: str) -> tuple[str, str]:
    """'value (reason)', which may have parentheses of their own: the reason is in the last that close at the end."""
    depth = 0
    for place in range(len(decision) - 1, -1, -1) if decision.endswith(")") else ():
        depth += (decision[place] == ")") - (decision[place] == "(")
        if not depth and decision[place - 1 : place] == " ":
            return decision[: place - 1], decision[place + 1 : -1]
    return decision, ""


def bring(config: Config) -> None:
    """Pull the model if it is neither here nor in the cache, so that the bar shows here and not in an engine."""
    from sapwood.catalogue import joined
    from sapwood.hub.cache import Cache
    from sapwood.hub.files import find
    from sapwood.hub.pull import pulled

    model, revision = config.model.model, config.model.revision
    if not Path(model).expanduser().exists() and pulled(model, revision=revision, cache=Cache.default()) is None:
        with pull_progress() as progress:
            find(model, revision=revision, progress=progress, families=joined().families)


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """A progress bar on stderr that appears when something is pulled."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    out = console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
                if not out.is_terminal:
                    out.print(f"{stage} ...")
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show
