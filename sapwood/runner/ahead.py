"""Kernels that are compiled before steps need them, all at the same time.

A rehearsal goes through steps as the engine will launch them. Kernels that are not compiled yet are not launched in it:
what they are to be compiled for is noted and sent to another process. Kernels that Triton has compiled before are
found again by their own source, so another version of the package compiles only what has changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
import triton
from torch.overrides import TorchFunctionMode

import sapwood
from sapwood import attention, kernels
from sapwood.config.env import kernel_dir
from sapwood.runner.compiler import Job

log = logging.getLogger(__name__)

_PATIENCE = 600
"""Seconds in which all kernels are compiled on any machine."""

_ROOT = Path(sapwood.__file__).parent.parent
"""Where the other process finds this very package."""

_MOST_WAITING = 1 << 20
"""Bytes of jobs that the rehearsal may be ahead by. As much as the system allows; a job takes a few thousand."""


def keep_kernels(folder: Path) -> None:
    """Have Triton keep compiled kernels there, from now on and in this process's children too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("compiled kernels are not kept in %s: %s", folder, error)
        return
    triton.knobs.cache.dir = str(folder.absolute())


def _kept() -> Path:
    return Path(triton.knobs.cache.dir)


def fingerprint(facts: object) -> str:
    """Names all kernels that an engine may launch: their sources, the compiler, the device, and `facts` of the engine,
    whose repr says what they are specialised for."""
    digest = hashlib.sha256(f"{triton.__version__} {facts!r}".encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> list[Path]:
    """What decides which kernels there are, and for what they are compiled."""
    roots = [Path(kernels.__file__).parent / "triton", Path(attention.__file__).parent]
    here = Path(__file__).parent
    return [path for root in roots for path in sorted(root.glob("*.py"))] + [
        here / "batch_triton.py",
        here / "frame.py",
    ]


def compile_ahead(facts: object, launch: Callable[[], None]) -> Callable[[], None]:
    """Begin to compile what `launch` launches, unless it was compiled before, as `facts` of the engine show; what is
    returned waits for it. Weights may be loaded meanwhile: they decide nothing."""
    keep_kernels(kernel_dir())
    name = fingerprint(facts)
    if (_kept() / f"{name}.known").exists():
        return lambda: None
    log.info("compiling kernels, which the next start will find")
    ahead = Ahead(name)
    with ahead.rehearsal():
        launch()
    return ahead.wait


class Ahead:
    """Compiles what one rehearsal finds. Order of calls: `rehearsal`, then `wait`."""

    def __init__(self, name: str) -> None:
        self._mark = _kept() / f"{name}.known"
        self._seen: set[tuple[str, str, str]] = set()
        self._encoder = msgspec.json.Encoder()
        command = (sys.executable, "-m", "sapwood.runner.compiler", str(len(os.sched_getaffinity(0))))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pipesize=_MOST_WAITING, cwd=_ROOT
        )

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Kernels that this thread launches meanwhile are noted instead, unless this process has compiled them.

        What they would have written is zero, which is as good an index or a length as any.
        """
        thread, before = threading.get_ident(), triton.knobs.runtime.jit_cache_hook

        def note(*args: Any, key: str, fn: Any, compile: Any, **more: Any) -> bool | None:
            if threading.get_ident() != thread:
                return before(*args, key=key, fn=fn, compile=compile, **more) if before else None
            if (kernel := (str(fn.module), str(fn.name), key)) not in self._seen:
                self._seen.add(kernel)
                self._send(Job(*kernel[:2], compile["specialization_data"], _target()))
            return True

        triton.knobs.runtime.jit_cache_hook = note
        try:
            with _Blank():
                yield
        finally:
            triton.knobs.runtime.jit_cache_hook = before

    def _send(self, job: Job) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: kernels are compiled when they are launched
            self._process.stdin.write(self._encoder.encode(job) + b"\n")
            self._process.stdin.flush()

    def wait(self) -> None:
        """Until all is compiled that can be."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code == 0:
            with suppress(OSError):
                self._mark.touch()
        else:
            log.warning("kernels were not compiled ahead (exit code %d); the first steps compile them", code)


def _target() -> tuple[str, int, int]:
    target = triton.runtime.driver.active.get_current_target()
    return target.backend, target.arch, target.warp_size


class _Blank(TorchFunctionMode):
    """New memory is zero. Not a mode of dispatch, which makes PyTorch import its compiler: that takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in _MAKERS else made


_MAKERS = (torch.empty, torch.empty_like, torch.Tensor.new_empty)
