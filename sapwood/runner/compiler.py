"""A process that compiles kernels beside an engine, each in a child of its own: the interpreter's lock would let threads
compile hardly two at a time.

    python -m sapwood.runner.compiler CHILDREN

It reads jobs from standard input, one JSON object a line, until that ends, and leaves what it compiles where Triton will
look for it. What cannot be compiled here is no error: the engine will try itself, and say why it failed. There is no
device here and no PyTorch either, since importing it takes as long as compiling everything.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import msgspec


class Job(msgspec.Struct, frozen=True):
    """A kernel as `triton.knobs.runtime.jit_cache_hook` tells of it. `target` are the arguments of a GPUTarget."""

    module: str
    name: str
    specialization: str
    target: tuple[str, int, int]


class Absent(MetaPathFinder, Loader):
    """Stands in for a package of which modules only want names, for annotations and functions that nobody calls."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == self._package else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Nothing(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Nothing(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def main() -> int:
    sys.meta_path.insert(0, Absent("torch"))
    from triton.runtime.cache import triton_key

    most, running = int(sys.argv[1]), 0
    triton_key()  # reads the whole compiler, once for all children
    decoder = msgspec.json.Decoder(Job)
    for line in sys.stdin.buffer:
        job = decoder.decode(line)
        import_module(job.module)
        if running == most:
            os.wait()
            running -= 1
        if os.fork() == 0:
            _child(job)
        running += 1
    for _ in range(running):
        os.wait()
    return 0


def _child(job: Job) -> None:
    try:
        compile_job(job)
    finally:
        os._exit(0)


def compile_job(job: Job) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    driver.set_active(_Paper(GPUTarget(*job.target)))
    kernel = getattr(import_module(job.module), job.name).preload(job.specialization)
    from triton.backends.nvidia.driver import CudaLauncher

    CudaLauncher(kernel.src, kernel.metadata)  # the launch of a kernel is C, compiled too


class _Paper:
    """As much of a device as compiling for it takes."""

    def __init__(self, target: object) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> object:
        return self._target


if __name__ == "__main__":
    raise SystemExit(main())
