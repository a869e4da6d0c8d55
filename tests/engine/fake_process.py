"""What runs as an engine's process in tests of fronts: it begins and ends as told, and computes nothing.

`python fake_process.py WAY[,WAY...] FOLDER` leaves files in FOLDER: `begun`, which holds its process id, `told` when it has
heard what it is to be, and `lives`, with a line for each that has begun. The first to begin there goes the first way, the
second the second, and all after those the last.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

WAYS = {
    "loads": "never becomes ready, and goes when its standard input ends",
    "stays": "never becomes ready, and does not go",
    "serves": "becomes ready, and goes when its standard input ends",
    "lingers": "becomes ready, and does not go",
    "breaks": "ends while it loads",
    "dies": "becomes ready, and ends",
    "answers": "becomes ready, and answers every request with a token and every question",
    "works": "becomes ready, and says from time to time that it works, as if on a step without end",
}


def main(ways: list[str], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(600)  # however a test ends, it stays no longer
    with (folder / "lives").open("a") as lives:
        lives.write("one\n")
    way = ways[min((folder / "lives").read_text().count("\n"), len(ways)) - 1]
    note(folder / "begun")
    import msgspec

    size = int.from_bytes(sys.stdin.buffer.read(4), "big")
    told = sys.stdin.buffer.read(size)
    if not told:
        raise SystemExit(1)
    note(folder / "told")
    if way == "breaks":
        raise SystemExit(7)
    if way not in ("loads", "stays"):
        serve(way, msgspec.msgpack.decode(told)["folder"])
    while sys.stdin.buffer.read(1):
        pass
    while way in ("stays", "lingers"):
        signal.pause()
    os._exit(0)


def serve(way: str, sockets: str) -> None:
    """Become ready, and do what is to be done while it is."""
    import msgspec
    import zmq

    from sapwood.base.wire import Beat, Facts, Ready

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
    context = zmq.Context()
    up, down = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    up.connect(f"ipc://{sockets}/up")
    down.connect(f"ipc://{sockets}/down")

    def say(message: Any) -> None:
        up.send(msgspec.msgpack.encode(message))

    say(Ready(facts))
    if way == "dies":
        context.destroy(linger=10_000)
        raise SystemExit(7)
    poller = zmq.Poller()
    for one in (down, 0):
        poller.register(one, zmq.POLLIN)
    seconds = 0.0
    while 0 not in (found := dict(poller.poll(100 if way == "works" else None))):
        if way == "works":
            seconds += 0.1
            say(Beat(1, seconds))
        elif found and (sent := down.recv()) and way == "answers":
            answer(say, sent)


def answer(say: Any, sent: bytes) -> None:
    from sapwood.base import wire

    match wire.msgspec.msgpack.decode(sent, type=wire.ToEngine):
        case wire.Submit(id=id):
            say(wire.Deltas([], [], [wire.Delta(id, [7], finish="length", cached_tokens=0)]))
        case wire.Control(id=id, what=what):
            say(wire.Reply(id, {"did": what}))


def note(path: Path) -> None:
    """Written beside and moved there, so that nobody reads half of it."""
    new = path.with_suffix(f".{os.getpid()}")  # several processes may be in one folder
    new.write_text(str(os.getpid()))
    new.rename(path)


if __name__ == "__main__":
    main(sys.argv[1].split(","), Path(sys.argv[2]))
