"""The processor that this process runs on, and its memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.config.facts import DeviceFacts

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")

ABILITIES = frozenset({Ability.HOST})


class Cpu:
    """Keeps the protocol `Device`: whatever it was given is done, and it can see no memory but the host's."""

    def __init__(self) -> None:
        self.place = torch.device("cpu")

    @cached_property
    def facts(self) -> DeviceFacts:
        return facts()

    def can(self, ability: Ability) -> bool:
        return ability in ABILITIES

    def use(self) -> None:
        pass

    def mark(self) -> None:
        return None

    def aside(self, tensor: Tensor) -> Tensor:
        return tensor

    def send(self, rows: Tensor, targets: Sequence[Tensor]) -> None:
        for row, target in zip(rows, targets, strict=True):
            target.copy_(row)

    def sent(self) -> None:
        return None

    def release(self) -> None:
        pass

    def memory(self) -> tuple[int, int]:
        total, free = _memory()
        return total, total - free

    def peak(self, run: Callable[[], None]) -> int:
        return self.taken(run)

    def taken(self, make: Callable[[], object]) -> int:
        before = _memory()[1]
        make()
        return max(0, before - _memory()[1])


def facts() -> DeviceFacts:
    total, free = _memory()
    return DeviceFacts(
        kind="cpu",
        name=_name(),
        num_cores=num_cores(),
        total_memory=total,
        free_memory=free,
        dtypes=("float32", "bfloat16", "float16"),
        abilities=ABILITIES,
    )


def num_cores() -> int:
    """Cores that this process may use: those of its affinity, each once however many threads it runs at a time, cut by a
    container's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        allowed = os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    return min(allowed, max(1, int(quota) // int(period))) if quota.isdigit() else allowed


def _siblings(cpu: int) -> str:
    """The processors that are one core with this one, as the system writes them; itself where that is not known."""
    return _read(_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _memory() -> tuple[int, int]:
    """Total and free bytes, cut by a container's limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    lines = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines())
    available = lines.get("MemAvailable", "").split()
    free = int(available[0]) * 1024 if available else total // 2
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        total, free = min(total, int(limit)), min(free, max(0, int(limit) - int(used)))
    return total, free


def _name() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
