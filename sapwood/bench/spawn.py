"""A server of our own to send load to, for as long as that lasts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sapwood.base.errors import SapwoodError, UserError
from sapwood.bench.offline import shape_options

DRAIN_SECONDS = 40


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is told to end when the context does, and made to if it does not."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(DRAIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


class Spawned(NamedTuple):
    url: str
    pid: int


@contextmanager
def serving(
    model: str, flags: Sequence[str], *, program: Sequence[str] = ("-m", "sapwood", "serve")
) -> Iterator[Spawned]:
    """`sapwood serve MODEL` on a free port. A shape's name serves random weights. `program` is what Python runs for it.

    Raises UserError if it does not start for a reason that the user can mend, else SapwoodError.
    """
    with tempfile.TemporaryDirectory(prefix="sapwood-bench-") as folder:
        words = ["--model", model]
        if shape := shape_options(model):
            words = ["--model", shape["model"], "--load-format", "dummy", "--served-model-name", model]
            if not any(flag in flags for flag in ("--tokenizer", "--tokenizer-path")):
                size = json.loads((Path(shape["model"]) / "config.json").read_text("utf-8"))["vocab_size"]
                words += ["--tokenizer", str(write_tokenizer(Path(folder), size))]
        command = [sys.executable, *program, *words, "--port", "0", "--log-level", "warning", *flags]
        with running(command, stdout=subprocess.PIPE) as server:
            yield Spawned(_url(server), server.pid)


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    """A tokenizer for random weights: every id is a word and a space. Returns its tokenizer.json."""
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\S+ "}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {f"w{id} ": id for id in range(vocab_size)}, "unk_token": "w0 "},
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return path


def _url(server: subprocess.Popen[str]) -> str:
    """Wait until the server is ready; what it prints later is read and dropped."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready at "):
            threading.Thread(target=deque, args=(server.stdout, 0), daemon=True).start()
            return line.split()[2]
    kind = UserError if (code := server.wait()) == 2 else SapwoodError
    raise kind(f"the server ended with exit code {code} before it was ready; its own words are above.")
