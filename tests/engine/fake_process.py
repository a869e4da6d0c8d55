"""What runs as an engine's process in tests of fronts: it begins and ends as told, and computes nothing.

`python fake_process.py WAY FOLDER` leaves files in FOLDER: `begun`, which holds its process id, and `told` when it has
heard what it is to be.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

WAYS = {
    "loads": "never becomes ready, and goes when its standard input ends",
    "stays": "never becomes ready, and does not go",
    "serves": "becomes ready, and goes when its standard input ends",
    "lingers": "becomes ready, and does not go",
    "breaks": "ends while it loads",
    "dies": "becomes ready, and ends",
}


def main(way: str, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(600)  # however a test ends, it stays no longer
    note(folder / "begun")
    import msgspec
    import zmq

    from sapwood.base.wire import Facts, Ready

    size = int.from_bytes(sys.stdin.buffer.read(4), "big")
    told = sys.stdin.buffer.read(size)
    if not told:
        raise SystemExit(1)
    note(folder / "told")
    if way == "breaks":
        raise SystemExit(7)
    if way in ("serves", "lingers", "dies"):
        facts = Facts(
            max_model_len=512,
            vocab_size=320,
            max_num_seqs=8,
            max_num_batched_tokens=64,
            page_size=16,
            num_pages=[32],
            device="cpu",
            dtype="float32",
            attention_backend="none",
            seconds_to_ready={},
            decisions=[],
        )
        up = zmq.Context().socket(zmq.PUSH)
        up.connect(f"ipc://{msgspec.msgpack.decode(told)['folder']}/up")
        up.send(msgspec.msgpack.encode(Ready(facts)))
        if way == "dies":
            up.context.destroy(linger=10_000)
            raise SystemExit(7)
    while sys.stdin.buffer.read(1):
        pass
    while way in ("stays", "lingers"):
        signal.pause()
    os._exit(0)


def note(path: Path) -> None:
    """Written beside and moved there, so that nobody reads half of it."""
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
