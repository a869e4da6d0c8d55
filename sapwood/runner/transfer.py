"""Small things between host and device, without waiting for either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.device import abilities_of

_ALIGN = 8


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Copies of the arrays, which travel as one pinned buffer in one transfer.

    PyTorch's pinned allocator gives the buffer to no one else before the transfer is over. To the host nothing travels.
    """
    abilities = abilities_of(device)
    if Ability.HOST in abilities:
        return [torch.from_numpy(np.array(array, order="C")) for array in arrays]
    starts = np.cumsum([0] + [-(-array.nbytes // _ALIGN) * _ALIGN for array in arrays]).tolist()
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=Ability.PINNED in abilities)
    parts = [(start, start + array.nbytes) for start, array in zip(starts, arrays, strict=False)]
    for (first, last), array in zip(parts, arrays, strict=True):
        buffer.numpy()[first:last] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    moved = buffer.to(device, non_blocking=True)
    return [
        moved[first:last].view(getattr(torch, array.dtype.name)).view(array.shape)
        for (first, last), array in zip(parts, arrays, strict=True)
    ]


def send(array: NDArray[Any], target: Tensor) -> None:
    """Copy an array to a device tensor of the same size and dtype, through pinned memory of its own."""
    pinned = torch.empty(array.shape, dtype=target.dtype, pin_memory=Ability.PINNED in abilities_of(target.device))
    pinned.numpy()[:] = array
    target.copy_(pinned, non_blocking=True)


def download(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory, to be read when an event recorded after this has passed."""
    if Ability.PINNED not in abilities_of(tensor.device):
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
