"""NVIDIA's devices, by PyTorch's CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.config.facts import DeviceFacts
from sapwood.device.cpu import num_cores

_ALL = frozenset({Ability.PINNED, Ability.TRITON, Ability.GRAPHS})
_SINCE = (
    ((8, 9), frozenset({Ability.FP8})),
    ((9, 0), frozenset({Ability.EARLY_LAUNCH, Ability.TMA, Ability.CUDNN})),
)
"""What devices of NVIDIA can from a compute capability on. Nobody else compares capabilities: other makers' numbers mean
other things."""


class Cuda:
    """Keeps the protocol `Device`. PyTorch's current stream orders everything; uploads aside and what is sent have streams of their own."""

    def __init__(self, index: int) -> None:
        self.place = torch.device("cuda", index)
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # as products: float32 is float32
        self._uploads: torch.cuda.Stream | None = None
        self._downloads: torch.cuda.Stream | None = None

    @cached_property
    def facts(self) -> DeviceFacts:
        return facts(self.place.index)

    def can(self, ability: Ability) -> bool:
        return ability in self.facts.abilities

    def use(self) -> None:
        torch.cuda.set_device(self.place)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record()
        return event

    def aside(self, tensor: Tensor) -> Tensor:
        if self._uploads is None:
            self._uploads = torch.cuda.Stream(self.place)
        computing = torch.cuda.current_stream(self.place)
        with torch.cuda.stream(self._uploads):
            moved = tensor.to(self.place, non_blocking=True)
        computing.wait_stream(self._uploads)
        moved.record_stream(computing)
        return moved

    def send(self, rows: Tensor, targets: Sequence[Tensor]) -> None:
        stream = self._downloads = self._downloads or torch.cuda.Stream(self.place)
        stream.wait_stream(torch.cuda.current_stream(self.place))
        rows.record_stream(stream)
        with torch.cuda.stream(stream):
            for row, target in zip(rows, targets, strict=True):
                target.copy_(row, non_blocking=True)

    def sent(self) -> torch.cuda.Event | None:
        return None if self._downloads is None else self._downloads.record_event()

    def release(self) -> None:
        torch.cuda.empty_cache()

    def memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.place)
        return total, total - free - torch.cuda.memory_reserved(self.place)

    def peak(self, run: Callable[[], None]) -> int:
        torch.cuda.reset_peak_memory_stats(self.place)
        run()
        return torch.cuda.max_memory_reserved(self.place)

    def taken(self, make: Callable[[], object]) -> int:
        torch.cuda.synchronize(self.place)
        before, _ = torch.cuda.mem_get_info(self.place)
        make()
        torch.cuda.synchronize(self.place)
        return max(0, before - torch.cuda.mem_get_info(self.place)[0])


def refuse() -> str | None:
    """Why none of them can be used here, or None."""
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device"
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(0).name
        return (
            f"{name} is AMD's, and the kernels are written for NVIDIA's devices (PyTorch {torch.__version__} for ROCm)"
        )
    return None


def facts(index: int) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    capability = (properties.major, properties.minor)
    return DeviceFacts(
        kind="cuda",
        index=index,
        name=properties.name,
        num_cores=num_cores(),
        total_memory=total,
        free_memory=free,
        capability=capability,
        dtypes=("float32", "float16", "bfloat16") if capability >= (8, 0) else ("float32", "float16"),
        abilities=since(capability),
    )


def abilities(place: torch.device) -> frozenset[Ability]:
    """Of the device at a place; where there is none that could be asked, what all recent ones can."""
    if not torch.cuda.is_available():
        return _ALL | {Ability.FP8}
    if torch.version.hip is not None:
        return frozenset({Ability.PINNED})
    return since(torch.cuda.get_device_capability(place))


def since(capability: tuple[int, int]) -> frozenset[Ability]:
    """What a device of that compute capability can."""
    return _ALL.union(*(more for first, more in _SINCE if capability >= first))
