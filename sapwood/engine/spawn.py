"""Beginning an engine process. Imports next to nothing, so that it may be the first thing that a front does."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

COMMAND = (sys.executable, "-m", "sapwood.engine.process")


class Child:
    """A process that imports what it needs while it waits, on its standard input, for what it is to do.

    Leaving its context ends it, unless it has ended.
    """

    def __init__(self, command: Sequence[str]) -> None:
        try:
            with _interrupts_held():  # one amid Popen would leave a process that nobody holds
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        except KeyboardInterrupt:
            self.__exit__()
            raise

    def tell(self, start: bytes) -> None:
        """Send an encoded `Start`; its standard input stays open. A child that has ended hears nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(len(start).to_bytes(4, "big") + start)
            self._process.stdin.flush()

    def wait(self) -> int:
        """Its exit code, minus the number of the signal that ended it. Waits; any thread may."""
        return self._process.wait()

    def close(self) -> None:
        """Close its standard input, which it takes as its end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.close()
            self.kill()
            self.wait()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a Ctrl-C that comes inside when the context is left.

    Only where Ctrl-C would raise one: in the main thread, under Python's own handler.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def spawn(command: Sequence[str] | None = None) -> Child:
    """Begin a process. `command` is what runs in it: anything that reads a `Start` and speaks as `process.main` does."""
    return Child(command or COMMAND)
