"""The heartbeat of an engine whose loop is at one thing for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from sapwood.base.wire import Beat

BEAT_SECONDS = 1.0


class Pulse:
    """Says from a thread of its own how long the loop has been at what it does: `say` is called about once a second while
    that is more than a second, and never while it rests. `steps` counts the loop's steps."""

    def __init__(self, say: Callable[[Beat], None], steps: Callable[[], int]) -> None:
        self._say, self._steps = say, steps
        self._since = monotonic()
        self._works, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def turn(self) -> None:
        """The loop begins with something new."""
        self._since = monotonic()
        if not self._works.is_set():
            self._works.set()

    def rest(self) -> None:
        """The loop waits for something to do."""
        self._works.clear()

    def _run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            seconds = monotonic() - self._since
            if self._works.is_set() and seconds > BEAT_SECONDS:
                self._say(Beat(self._steps(), seconds))
            self._works.wait()  # nobody is woken while there is nothing to do

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._works.set()
        self._thread.join()
