"""Run a command that ends with whoever began it, however that goes: `python -m sapwood.fleet.leash SECONDS COMMAND ...`.

Its standard input stays open for as long as the other lives. When it ends, or at SIGTERM, the command gets SIGTERM, and SECONDS later SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """The command's exit code."""
    seconds, command = float(argv[0]), argv[1:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(*_: object) -> None:
        child.terminate()
        late = threading.Timer(seconds, child.kill)
        late.daemon = True
        late.start()

    def watch() -> None:
        while os.read(0, 4096):  # not buffered: the interpreter could not end while it is read
            pass
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
