"""What makes starts shorter and processes smaller, and nothing else: all of it may be left out.

An engine on a CPU and its front are small enough that what surrounds them counts. Importing PyTorch is most of a start and much
of the memory, so modules that serve compilers only are not executed before somebody asks them for something (where there is
a GPU nothing of this is done: its start is long for other reasons). While a process starts, next to nothing becomes garbage,
and before it serves, what only its start needed goes.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

LATE = ("torch._meta_registrations", "torch.export")
"""What PyTorch imports at its end, and needs to trace or compile. The first is imported for its effect on tensors that
have no data, of which an engine has none."""

_GPUS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
_DONTNEED = 4
_LEAST_BYTES = 1 << 20
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \S+ +/")


def begin() -> None:
    """At the beginning of a process: looking for garbage takes a tenth of the time of imports."""
    gc.disable()


def thin_torch() -> None:
    """To be called once, before PyTorch is imported."""
    if any(Path(device).exists() for device in _GPUS) or "torch" in sys.modules:
        return
    sys.meta_path.insert(0, Lateness(LATE))


def whole_torch() -> None:
    """Execute what is late: random numbers, which only random weights need of PyTorch here, rest on it."""
    for name in LATE:
        if isinstance(module := sys.modules.get(name), _Late):
            module.execute()


def trim() -> None:
    """Collect garbage from now on, of what is made from now on, and give back the memory that lies idle.

    That is free memory of the C library, and pages of code that linking and initialisation touched: those that are used
    again are mapped again, from the page cache.
    """
    gc.freeze()
    gc.enable()
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
            code = list(code_mappings(smaps))
    except OSError:
        return
    for start, size in code:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED)


def shed() -> None:
    """Give back what has been dropped since the start."""
    gc.unfreeze()  # what was there then is in nobody's way, and was never looked at again
    gc.collect()
    trim()


def code_mappings(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Address and size of large code that is in memory exactly as it is in its file, from the lines of an `smaps`."""
    start = end = resident = 0
    for line in smaps:
        if match := _MAPPING.match(line):
            start, end = int(match[1], 16), int(match[2], 16)
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif line.startswith("Anonymous:"):  # a page of code that was written to exists nowhere else
            if start and line.split()[1] == "0" and resident >= _LEAST_BYTES:
                yield start, end - start
            start = 0


class Lateness:
    """A finder, for sys.meta_path, of modules that are executed when they are first asked for something."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package = sys.modules.get(name.rpartition(".")[0])
        if isinstance(package, _Late):
            package.execute()
        if name not in self._names:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LateLoader(spec.loader)
        return spec


class _Late(ModuleType):
    """Has a `_loader_` until it has been executed."""

    def __getattr__(self, name: str) -> Any:
        # The import system looks at a module's own names, which are there, and at some that may be missing.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.execute()
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        self.execute()
        return sorted(vars(self))

    def execute(self) -> None:
        with _EXECUTING:
            loader = self.__dict__.pop("_loader_", None)
            if loader is not None:
                loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]


_EXECUTING = threading.RLock()


class _LateLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Late(spec.name)
        module.__dict__["_loader_"] = self._loader
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass
