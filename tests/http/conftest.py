"""Real servers: `sapwood serve` in a process of its own, on a tiny random model with a byte-level tokenizer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest


class Server:
    """A running `sapwood serve`."""

    def __init__(self, model: Path, *flags: str) -> None:
        command = [
            sys.executable,
            "-m",
            "sapwood",
            "serve",
            "--model",
            str(model),
            "--port",
            "0",
            "--device",
            "cpu",
            *flags,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self._wait_for_url()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.output += line

    def _wait_for_url(self, seconds: float = 90) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"ready at (http://\S+)", self.output):
                return found[1]
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"the server did not start:\n{self.output}")

    @property
    def engine_pid(self) -> int:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next(int(c) for c in children if b"engine.process" in Path(f"/proc/{c}/cmdline").read_bytes())

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=10)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.kill()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--served-model-name", "tiny")
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture
def own_server(tiny_model: Path) -> Iterator[Server]:
    """A server that the test may harm."""
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--served-model-name", "tiny")
    yield server
    server.kill()
