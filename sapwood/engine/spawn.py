"""Beginning an engine process. Imports next to nothing, so that it may be the first thing that a front does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import weakref
from collections.abc import Sequence

from sapwood.engine import interrupts

COMMAND = (sys.executable, "-m", "sapwood.engine.process")
RANK = (sys.executable, "-m", "sapwood.engine.rank")


class Child:
    """A process that imports what it needs while it waits, on its standard input, for what it is to do.

    It lives no longer than this object: leaving its context ends it, and so does forgetting it while nobody waits for it, or
    the interpreter's end, whatever an exception or a signal has skipped.
    """

    def __init__(self, command: Sequence[str]) -> None:
        with contextlib.ExitStack() as undone:  # by an interrupt that was held, or any other while there is a process
            with interrupts.held():  # one amid Popen would leave a process that nobody holds
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
                self._forgotten = weakref.finalize(self, _end, self._process)
                undone.callback(self.end)
            undone.pop_all()

    def tell(self, start: bytes) -> None:
        """Send an encoded `Start`; its standard input stays open. A child that has ended hears nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(len(start).to_bytes(4, "big") + start)
            self._process.stdin.flush()

    def poll(self) -> int | None:
        """Its exit code, as of `wait`, if it has ended."""
        return self._process.poll()

    def wait(self) -> int:
        """Its exit code, minus the number of the signal that ended it. Waits; any thread may."""
        return self._process.wait()

    def close(self) -> None:
        """Close its standard input, which it takes as its end."""
        _close(self._process)

    def kill(self) -> None:
        """Kill it unless it has ended, without waiting for that."""
        self._process.kill()

    def end(self) -> None:
        """Kill it unless it has ended. When this returns it is gone; an interrupt meanwhile is raised then."""
        with interrupts.held():
            _end(self._process)
            self._forgotten.detach()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def read_told() -> bytes:
    """What this process, as a child, is told first. Ends it if its parent has gone before."""
    stdin = sys.stdin.buffer
    size = stdin.read(4)
    told = stdin.read(int.from_bytes(size, "big"))
    if not told:
        raise SystemExit(1)
    return told


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    _close(process)
    process.kill()  # nothing, if it has ended
    process.wait()


def spawn(command: Sequence[str] | None = None) -> Child:
    """Begin a process. `command` is what runs in it: anything that reads a `Start` and speaks as `process.main` does."""
    return Child(command or COMMAND)
