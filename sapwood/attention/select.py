"""Which backend serves a KV group."""

from __future__ import annotations

import importlib.util

import torch

from sapwood.attention.base import Backend
from sapwood.attention.cpu import Cpu
from sapwood.attention.reference import Reference
from sapwood.base.errors import ConfigError
from sapwood.base.kv import KVGroup

NAMES = ("triton", "cpu", "reference")
"""In the order in which `auto` tries them."""


def stored(name: str, computed: torch.dtype) -> torch.dtype:
    """The dtype of stored keys and values by the name of the option, where the model computes in `computed`."""
    return {"auto": computed, "fp8_e4m3": torch.float8_e4m3fn}.get(name) or getattr(torch, name)


def choose(group: KVGroup, device: torch.device, dtype: torch.dtype, name: str = "auto") -> type[Backend]:
    """The backend of that name, or for "auto" the fastest that does not refuse; `dtype` is that of the stored KV.

    Raises ConfigError where the named one cannot serve the group there, saying why and what can.
    """
    if name != "auto":
        found = _find(name, group, device, dtype)
        if isinstance(found, str):
            mend = choose(group, device, dtype).name
            raise ConfigError(f"--attention-backend {name} cannot be used: {found}. Use auto or {mend}.")
        return found
    reasons = []
    for candidate in NAMES:
        found = _find(candidate, group, device, dtype)
        if not isinstance(found, str):
            return found
        reasons.append(f"{candidate}: {found}")
    raise ConfigError(
        f"no attention backend can keep {dtype} on {device} ({'; '.join(reasons)}). Use another --kv-cache-dtype."
    )


def _find(name: str, group: KVGroup, device: torch.device, dtype: torch.dtype) -> type[Backend] | str:
    """The backend, or why not. Triton is imported only where it may run."""
    backend: type[Backend]
    if name == "triton":
        if device.type != "cuda":
            return f"its kernels run on CUDA devices, and the device is {device}"
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed (`pip install triton`)"
        from sapwood.attention.triton import Triton

        backend = Triton
    elif name == "cpu":
        backend = Cpu
    elif name == "reference":
        backend = Reference
    else:
        return f"there is no backend of that name (auto, {', '.join(NAMES)})"
    return backend.refuse(group, device, dtype) or backend
