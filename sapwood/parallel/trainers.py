"""Groups of processes in which a trainer sends weights: NCCL between GPUs, gloo anywhere.

A group is nobody's default. Where and under which names its processes meet is as PyTorch's own groups do it, with the group's name before the keys of the store
once more, so that the helpers which SGLang's and OpenRLHF's trainers make their end by (`init_custom_process_group`) meet ours.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from sapwood.base.errors import ModelError
from sapwood.base.weights import Backend, Group, Sent

_DIST: Any = distributed  # whose annotations leave out what is used here
_PATIENCE = timedelta(minutes=2)
_TRAINER = 0
_HOST = torch.device("cpu")

_DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    )
}


class Trainers:
    """The groups that rank `rank` of an engine is in. `place` is its device, where NCCL receives, None for one whose memory is the host's."""

    def __init__(self, place: torch.device | None, rank: int) -> None:
        self._place, self.rank = place, rank
        self._groups: dict[str, tuple[Backend, Any]] = {}

    def join(self, group: Group) -> None:
        """Wait until all of its processes are there. Raises ModelError, for one that does not come about within two minutes too."""
        name, rank = group.group_name, group.rank_offset + self.rank
        if name in self._groups:
            raise ModelError(f"group_name {name!r} is taken: destroy that group first, or give another name.")
        if not 0 < rank < group.world_size:
            raise ModelError(
                f"rank_offset {group.rank_offset}: rank {rank} of a world of {group.world_size} is none of an engine, which are those from 1 on; "
                "the trainer is 0."
            )
        if group.backend == "nccl" and self._place is None:
            raise ModelError("backend 'nccl': it is for GPUs, and this engine's device is the host. Give 'gloo'.")
        try:
            store = _DIST.TCPStore(group.master_address, group.master_port, group.world_size, False, _PATIENCE)
            self._groups[name] = group.backend, self._made(group, rank, store)
        except (RuntimeError, ValueError, OSError) as error:  # PyTorch's errors are the first
            where = f"{group.master_address}:{group.master_port}"
            raise ModelError(f"the group {name!r} at {where} did not come about: {_short(error)}.") from error

    def _made(self, group: Group, rank: int, store: Any) -> Any:
        name, place = group.group_name, self._where(group.backend)
        for prefix in (name, f"{name}/", f"{place.type}/"):
            store = _DIST.PrefixStore(prefix, store)
        if group.backend == "nccl":
            options = _DIST.ProcessGroupNCCL.Options()
            options._timeout = _PATIENCE
            return _DIST.ProcessGroupNCCL(store, rank, group.world_size, options)
        return _DIST.ProcessGroupGloo(store, rank, group.world_size, _PATIENCE)

    def _where(self, backend: Backend) -> torch.device:
        """Where tensors come to."""
        return self._place if backend == "nccl" and self._place is not None else _HOST

    def leave(self, name: str) -> None:
        """Raises ModelError if there is none of that name."""
        self._find(name)
        backend, made = self._groups.pop(name)
        if backend == "nccl":
            made.shutdown()

    def receive(self, sent: Sent, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """The tensors as they come, on the host. Raises ModelError before any is awaited that cannot be, or lies about in `folder`."""
        backend, group = self._find(sent.group_name)
        specs = list(zip(sent.names, sent.dtypes, sent.shapes, strict=True))
        sizes = [_itemsize(name, dtype) * math.prod(shape) for name, dtype, shape in specs]
        if (free := shutil.disk_usage(folder).free) < sum(sizes):
            raise ModelError(f"{sum(sizes) >> 20} MiB were to come, and {folder} has room for {free >> 20}.")
        place = self._where(backend)
        for name, dtype, shape in specs:
            tensor = torch.empty(shape, dtype=_DTYPES[dtype.removeprefix("torch.")], device=place)
            self._take(group, name, tensor)
            yield name, tensor.cpu()

    def _take(self, group: Any, name: str, tensor: Tensor) -> None:
        options = _DIST.BroadcastOptions()
        options.rootRank, options.rootTensor = _TRAINER, 0
        try:
            group.broadcast([tensor], options).wait()
        except RuntimeError as error:
            raise ModelError(f"{name} did not come: {_short(error)}.") from error

    def _find(self, name: str) -> tuple[Backend, Any]:
        if name not in self._groups:
            known = ", ".join(map(repr, self._groups)) or "none"
            raise ModelError(f"there is no group {name!r}; there are {known}: init_weights_update_group makes one.")
        return self._groups[name]


def _itemsize(name: str, dtype: str) -> int:
    found = _DTYPES.get(dtype.removeprefix("torch."))
    if found is None:
        raise ModelError(f"dtypes: {dtype!r} of {name} is none of {', '.join(_DTYPES)}.")
    return int(found.itemsize)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
