"""How far weights are: a bar on a terminal, and a line in the log when they are there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from sapwood.config import env

if TYPE_CHECKING:
    from sapwood.hub.pull import Progress

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.5  # a bar that is gone at once only flickers, and what draws it takes a while to import
_GIB = 1 << 30


@contextmanager
def loading(now: Callable[[], float] = monotonic) -> Iterator[Progress]:
    """Yields what is told of bytes that are there, under the name of what they are of."""
    began = now()
    bars: dict[str, Callable[[int, int], None]] = {}
    with ExitStack() as stack:

        def show(name: str, done: int, total: int) -> None:
            nonlocal began
            since = now() - began
            if name not in bars and since > _PATIENCE_SECONDS and sys.stderr.isatty():
                bars[name] = stack.enter_context(_bar(name))
            if name in bars:
                bars[name](done, total)
            if done == total:
                stack.close()
                rate = f" ({total / _GIB / since:.2f} GiB/s)" if since else ""
                log.info("%s: %.2f GiB of weights read in %.1f s%s", name, total / _GIB, since, rate)
                began = now()

        yield show


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True, highlight=False, no_color=env.plain() or None)
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(f"loading {name}", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
