"""Real servers: `sapwood serve` in a process of its own, on a tiny random model with a byte-level tokenizer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import SECONDS, eventually

ADMIN = "the admin's key"


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

    def _wait_for_url(self) -> str:
        at = re.compile(r"ready at (http://\S+)")
        eventually(lambda: at.search(self.output) or self.process.poll() is not None)
        if found := at.search(self.output):
            return found[1]
        self.kill()
        raise AssertionError(f"the server did not start:\n{self.output}")

    @property
    def engine_pid(self) -> int:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next(int(c) for c in children if b"engine.process" in Path(f"/proc/{c}/cmdline").read_bytes())

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=SECONDS)

    def post(self, path: str, **what: Any) -> httpx.Response:
        """With the operator's key, which only a server that has one looks at."""
        headers = {"x-api-key": ADMIN} | what.pop("headers", {})
        return httpx.post(self.url + path, timeout=SECONDS, headers=headers, **what)

    def health(self) -> httpx.Response:
        return self.get("/health")

    def wait_until_running(self, count: int) -> None:
        eventually(lambda: self.health().json().get("running") == count)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS)
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
    flags = ["--kv-cache-memory", "32M", "--served-model-name", "tiny", "--admin-api-key", ADMIN]
    server = Server(tiny_model, *flags)
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture
def own_server(tiny_model: Path) -> Iterator[Server]:
    """A server that the test may harm. It has time for what it was asked before it ends."""
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--served-model-name", "tiny", "--drain-timeout", "600")
    yield server
    server.kill()
