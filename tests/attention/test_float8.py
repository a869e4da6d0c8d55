"""Keys and values stored in float8 (e4m3, no scale), against dense attention of the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sapwood.runner.parts import copy_pages
from tests import kv

pytest.importorskip("triton")

FLOAT8 = torch.float8_e4m3fn
GROUP = kv.group(num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, window=None, page_size=8)
TOLERANCE = 0.15
"""Of outputs of order 1. Storing rounds a key or value by up to 1/16 of itself, which is what a score may then be off by;
the mean over several positions is closer."""


def _rounded(world: Any) -> None:
    """Keys and values that float8 holds exactly, so that storing them changes nothing."""
    for tensors in (world.keys, world.values):
        for tensor in tensors:
            tensor.copy_(tensor.to(FLOAT8).float())


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled on this machine")
def test_what_is_stored_is_read(world: Any) -> None:
    """In the interpreter, which reads float8 well and does not round to it well: cells are filled beforehand."""
    from sapwood.attention.triton import Triton

    made = world(GROUP, (40, 21), dtype=torch.float16)
    _rounded(made)
    backend: Any = Triton(GROUP, 1, made.device, FLOAT8)
    backend.allocate(made.num_pages)
    for slot, length in enumerate((40, 21)):
        positions = torch.arange(length)
        pages, cells = made.table_SP[slot, positions // 8].long(), positions % 8
        for stored, tensors in ((backend._keys, made.keys), (backend._values, made.values)):
            stored[0].view(torch.uint8)[pages, :, cells] = tensors[slot][0].to(FLOAT8).view(torch.uint8)
    written = backend._keys.view(torch.uint8).clone()
    made.fed[:] = [30, 20]
    made.step(backend, [(0, 9), (1, 1)])
    backend._keys.view(torch.uint8).copy_(written)
    made.step(backend, [(0, 1)])
    made.check_from({0: 30, 1: 20})
    backend._keys.view(torch.uint8).copy_(written)
    made.fed[:] = [37, 20]
    made.step(backend, [(0, 3), (1, 1)], drafted=2)
    made.check_from({0: 37, 1: 20})


@pytest.mark.gpu
@pytest.mark.parametrize("exact", [True, False])
def test_stored_and_read(world: Any, exact: bool) -> None:
    from sapwood.attention.triton import Triton

    group = kv.group(num_layers=2, num_heads=8, num_kv_heads=2, head_dim=128, window=None, page_size=16)
    made = world(group, (700, 130), device=torch.device("cuda"), dtype=torch.bfloat16, scale=128**-0.5)
    if exact:
        _rounded(made)
    backend: Any = Triton(group, 1, made.device, FLOAT8)
    backend.allocate(made.num_pages)
    for stored in (backend._keys, backend._values):
        stored.view(torch.uint8).fill_(0x7F)  # NaN
    made.step(backend, [(0, 600), (1, 100)])
    made.step(backend, [(0, 3), (1, 1)])
    made.step(backend, [(0, 1), (1, 1)])
    made.step(backend, [(0, 23), (1, 5)], drafted=2)
    made.check_from({0: 0, 1: 0}, tolerance=None if exact else TOLERANCE)


@pytest.mark.gpu
def test_pages_are_copied() -> None:
    from sapwood.attention.triton import Triton

    backend: Any = Triton(GROUP, 0, torch.device("cuda"), FLOAT8)
    backend.allocate(4)
    backend._keys.view(torch.uint8).random_()
    copy_pages(backend, torch.tensor([1], device="cuda"), torch.tensor([3], device="cuda"))
    keys = backend._keys.view(torch.uint8)
    assert torch.equal(keys[:, 3], keys[:, 1])
