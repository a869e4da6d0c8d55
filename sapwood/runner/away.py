"""Weights in the host's memory while their model sleeps.

Tensors stay what they are, and so does whatever refers to them: only the memory behind them is given back to the device, and comes
back elsewhere. What has noted addresses, as graphs do, has to be made anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sapwood.base.abilities import Ability
from sapwood.device import Device

_BLOCK = 64 << 20  # bytes of host memory that are taken at once: a power of two, to which pinned memory is rounded up
_LEAST = 64 << 10  # bytes of what is worth the way


class Away:
    """The large tensors of some models, whose memory the device has back until `back`. On a device that computes in the host's memory
    they stay where they are."""

    def __init__(self, models: Sequence[object], device: Device) -> None:
        own = [] if device.can(Ability.HOST) else _storages(models, device.place)
        self._kept = [(storage, storage.nbytes()) for storage in own]
        total, pinned = sum(size for _, size in self._kept), device.can(Ability.PINNED)
        self._blocks = [torch.empty(_BLOCK, dtype=torch.uint8, pin_memory=pinned) for _ in range(-(-total // _BLOCK))]
        first = 0
        for storage, size in self._kept:
            self._copy(storage, first, out=True)
            first += size
        if (mark := device.mark()) is not None:
            mark.synchronize()
        for storage, _ in self._kept:
            storage.resize_(0)
        self._device = device

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self._kept)

    def back(self) -> None:
        """Returns when all are there again."""
        first = 0
        for storage, size in self._kept:
            storage.resize_(size)
            self._copy(storage, first, out=False)
            first += size
        if (mark := self._device.mark()) is not None:
            mark.synchronize()
        self._kept, self._blocks = [], []

    def _copy(self, storage: torch.UntypedStorage, first: int, *, out: bool) -> None:
        """Between a storage and the bytes from `first` on, which may lie in several blocks."""
        bytes_Y, done = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage), 0
        while done < len(bytes_Y):
            block, begin = divmod(first + done, _BLOCK)
            count = min(_BLOCK - begin, len(bytes_Y) - done)
            here, there = self._blocks[block][begin : begin + count], bytes_Y[done : done + count]
            (here if out else there).copy_(there if out else here, non_blocking=True)
            done += count


def _storages(models: Sequence[object], place: torch.device) -> list[torch.UntypedStorage]:
    """What the models' large tensors lie in, each once."""
    found: dict[int, torch.UntypedStorage] = {}
    for model in models:
        for tensor in _tensors(model, set()):
            storage = tensor.untyped_storage()
            if tensor.device.type == place.type and storage.nbytes() >= _LEAST:
                found[storage.data_ptr()] = storage
    return list(found.values())


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Those of modules, of plain containers and of values with fields; not of whatever else a module knows."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        inner: Sequence[object] = list(vars(value).values())
    elif isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list | tuple):
        inner = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    else:
        return
    for one in inner:
        yield from _tensors(one, seen)
