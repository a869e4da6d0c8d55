"""Sound out of files that nobody vouches for: a process of its own decodes it, within bounds that the system holds."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sapwood.base.errors import ConfigError, RequestError
from sapwood.config import env

RATE = 16_000
"""Samples a second, one channel: what models of speech hear."""

Samples = NDArray[np.int16]

_GRACE = 4  # how much longer than its processor time a process may last, on a machine that has other work
_MISSING = "audio is decoded by libraries that are not installed: pip install 'sapwood[audio]'"


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """What one recording may take.

    Attributes:
        seconds: Of sound.
        cpu_seconds: Of processor time, for decoding.
        memory: Bytes beyond what the process has when it begins.
    """

    seconds: float = 3600.0
    cpu_seconds: int = 60
    memory: int = 256 << 20


@dataclass(frozen=True, eq=False)
class Audio:
    """A recording: int16 [N] at 16 kHz, one channel, which lies in a file without a name while it is large."""

    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


class Unheard(Exception):
    """Why a file is no recording, or takes more than it may."""


def check_installed() -> None:
    """Raise ConfigError where no audio can be decoded."""
    if importlib.util.find_spec("soundfile") is None or importlib.util.find_spec("soxr") is None:
        raise ConfigError(f"{_MISSING}.")


class Decoding:
    """One file on its way through a process, which reads what it was `give`n. Leaving the context ends its files."""

    def __init__(self, limits: AudioLimits) -> None:
        """Raises ConfigError where libraries are missing."""
        check_installed()
        self._limits = limits
        self._stack = contextlib.ExitStack()
        self._given: IO[bytes] = self._stack.enter_context(_nameless())
        self._made: IO[bytes] = self._stack.enter_context(_nameless())

    def give(self, data: bytes) -> None:
        """The file to be decoded; takes as long as a disk does."""
        self._given.write(data)
        self._given.flush()
        self._given.seek(0)

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), json.dumps(asdict(self._limits))]

    @property
    def pipes(self) -> dict[str, Any]:
        """What the process gets: the file to read, the file to write, and an environment without anything of ours."""
        # FFmpeg's filters have threads all the same; a heap for each would take most of the addresses that there may be.
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")
        threads = dict.fromkeys(names, "1")
        return {
            "stdin": self._given,
            "stdout": self._made,
            "stderr": subprocess.PIPE,
            "env": {**env.of_a_child(), **threads},
            "start_new_session": True,
        }

    @property
    def patience(self) -> float:
        """Seconds that the process may last."""
        return float(_GRACE * self._limits.cpu_seconds)

    def result(self, status: int | None, said: bytes) -> Audio:
        """What came of it, by its exit status, None if it was stopped, and its last words. Raises Unheard."""
        if status != 0:
            raise Unheard(self._reason(status, said))
        size = os.fstat(self._made.fileno()).st_size
        if size < 2:
            raise Unheard("it holds no sound")
        # The mapping outlives the file, which has no name any more.
        return Audio(np.memmap(self._made, np.int16, "r", shape=(size // 2,)))

    def _reason(self, status: int | None, said: bytes) -> str:
        with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
            return str(json.loads(said.splitlines()[-1])["error"])
        if status is None or status in (-24, -14):  # SIGXCPU, SIGALRM
            return f"it takes more than {self._limits.cpu_seconds} s to decode"
        return f"it cannot be decoded within {self._limits.memory >> 20} MiB of memory, or breaks its decoder"


def decoded(data: bytes, limits: AudioLimits = AudioLimits()) -> Audio:
    """The sound of a file: WAV, FLAC, OGG, MP3, and with `av` M4A, AAC and WebM.

    Raises RequestError (400) for what is none, or takes more than it may, and ConfigError where libraries are missing.
    """
    try:
        return _heard(data, limits)
    except Unheard as error:
        raise _refused(error) from None


def _heard(data: bytes, limits: AudioLimits) -> Audio:
    with Decoding(limits) as decoding:
        decoding.give(data)
        with subprocess.Popen(decoding.command, **decoding.pipes) as process:
            try:
                _, said = process.communicate(timeout=decoding.patience)
                return decoding.result(process.returncode, said)
            except subprocess.TimeoutExpired:
                return decoding.result(None, b"")
            finally:
                process.kill()


async def decoded_beside(data: bytes, limits: AudioLimits) -> Audio:
    """The same from a coroutine; cancelled, it ends the process."""
    try:
        return await heard_beside(data, limits)
    except Unheard as error:
        raise _refused(error) from None


async def heard_beside(data: bytes, limits: AudioLimits) -> Audio:
    """The same; raises Unheard for what is no recording or takes more than it may."""
    with Decoding(limits) as decoding:
        await asyncio.to_thread(decoding.give, data)
        process = await asyncio.create_subprocess_exec(*decoding.command, **decoding.pipes)
        try:
            _, said = await asyncio.wait_for(process.communicate(), decoding.patience)
            return decoding.result(process.returncode, said)
        except TimeoutError:
            return decoding.result(None, b"")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sapwood.speech.unpack import main; main(sys.argv[2])"
)


def _nameless() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="sapwood-audio-")


def _refused(why: Unheard) -> RequestError:
    return RequestError(f"file: {why}.", param="file", code="invalid_audio")
