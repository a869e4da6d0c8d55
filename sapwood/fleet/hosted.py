"""A server as a process: started, looked at, and ended."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import aiohttp

from sapwood.base.errors import SapwoodError
from sapwood.fleet.scaling import Load

_READY = re.compile(r"^ready at (\S+)", re.MULTILINE)
_GAUGE = re.compile(r"^sapwood_(running|waiting|page_size|pages)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_LOOK = aiohttp.ClientTimeout(total=5.0)
_GRACE = 5.0  # seconds that a server has beside those of its answers
_MOST_LINES = 1000


class NotServing(SapwoodError):
    """The process has ended, or does not answer."""


class Hosted:
    """A server that a command starts, which says `ready at URL` when it is ready.

    Attributes:
        url: Where it is; "" until it is ready.
    """

    url: str = ""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], *, host: str, key: str, drain: float) -> None:
        """`host`: what it is called by other machines; `key`: what it wants to be asked with."""
        self._host, self._key, self._drain = host, key, drain
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)  # that nobody has asked for yet
        self._last: deque[str] = deque(maxlen=8)
        self._found = threading.Event()  # that it is ready, or has ended
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sapwood.fleet.leash", f"{drain + _GRACE:g}", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, daemon=True).start()

    async def ready(self, seconds: float) -> str:
        """Its URL, once it is there. Raises NotServing with its last words."""
        if not await asyncio.to_thread(self._found.wait, seconds):
            raise NotServing(f"The server was not ready after {seconds:g} s.{self._last_words()}")
        if not self.url:
            raise NotServing(f"The server did not start.{self._last_words()}")
        return self.url

    async def load(self, session: aiohttp.ClientSession) -> Load:
        """What it has to do. Raises NotServing."""
        if self._process.poll() is not None:
            raise NotServing(f"The server has ended.{self._last_words()}")
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            async with session.get(f"{self.url}/health", headers=headers, timeout=_LOOK) as answer:
                if answer.status != 200:
                    raise NotServing(f"The server says {answer.status} at /health.")
            async with session.get(f"{self.url}/metrics", headers=headers, timeout=_LOOK) as answer:
                return load_of(await answer.text())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotServing(f"The server does not answer: {type(error).__name__}: {error}") from error

    def lines(self) -> list[str]:
        """What it has said since this was asked last."""
        found = []
        while self._lines:
            found.append(self._lines.popleft())
        return found

    async def stop(self) -> None:
        """Let its answers end, and it too."""
        if self._process.poll() is None:
            self._process.terminate()
            await asyncio.to_thread(self._ended)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _ended(self) -> None:
        try:
            self._process.wait(self._drain + 2 * _GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self._lines.append(line.rstrip("\n"))
                self._last.append(line.rstrip("\n"))
                if not self.url and (found := _READY.match(line)):
                    parts = urlsplit(found[1])
                    self.url = f"{parts.scheme}://{self._host}:{parts.port}"
                    self._found.set()
        self._found.set()

    def _last_words(self) -> str:
        words = "\n".join(self._last)
        return f" It said:\n{words}" if words else ""


def load_of(metrics: str) -> Load:
    """The load in what a server says at /metrics. Pages are those of the KV group that has most in use."""
    gauges: dict[str, float] = {}
    used = 0.0
    for name, labels, value in _GAUGE.findall(metrics):
        if name != "pages":
            gauges[name] = gauges.get(name, 0.0) + float(value)
        elif 'state="used"' in labels:
            used = max(used, float(value))
    return Load(gauges.get("running", 0.0), gauges.get("waiting", 0.0), used * gauges.get("page_size", 0.0))
