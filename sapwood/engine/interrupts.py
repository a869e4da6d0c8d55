"""SIGINT and SIGTERM in a process that has begun another one, which it must not leave behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""The exit code that shells show for a process that SIGTERM has ended."""


@contextmanager
def by_sigterm() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does at that moment, unless somebody inside listens to it, and the exit code says so.

    Its default would cut the stack off instead of unwinding it.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(on_ctrl_c):  # a job in the background does not hear Ctrl-C
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if came:
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def held() -> Iterator[None]:
    """What Python does on SIGINT and SIGTERM, such as raising KeyboardInterrupt, is done when the context is left."""
    if not _in_main_thread():  # handlers run in no other
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    for caught in came:
        ours[signal.Signals(caught)](caught, None)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
