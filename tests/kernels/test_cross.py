"""The Triton kernel of attention to inputs against the pool's own products."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import numpy as np
import pytest
import torch

from sapwood.attention.base import Batch, RowLimits
from sapwood.attention.fixed import FixedPool
from sapwood.base.kv import Fixed

pytest.importorskip("triton")

LENGTHS = {1: 70, 2: 3, 3: 64}
COUNTS = [2, 1, 1, 3]
SLOTS, ENTRIES = [0, 1, 2, 3], [1, 3, 2, 1]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    return str(request.param)


def filled(device: str) -> FixedPool:
    place = torch.device(device)
    pool = FixedPool(Fixed(3, 20), num_layers=2, entries=3, longest=80, num_slots=4, device=place, dtype=torch.float32)
    random = torch.Generator().manual_seed(0)
    for entry, length in LENGTHS.items():
        for layer in range(2):
            keys, values = torch.randn(2, length, 3, 20, generator=random).to(place)
            pool.write(layer, entry, keys, values)
        pool.measure(entry, length)
    pool.turn(np.array(SLOTS, np.int32), np.array(ENTRIES, np.int32))
    return pool


def batch(device: str) -> Batch:
    """Padded by a row and two tokens that belong to none."""
    place, counts = torch.device(device), torch.tensor([*COUNTS, 0], dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()])
    tokens = torch.zeros(sum(COUNTS) + 2, dtype=torch.int64, device=place)
    return Batch(
        ids_T=tokens,
        positions_T=tokens,
        slots_R=torch.tensor([*SLOTS, 4], dtype=torch.int32, device=place),
        starts_R=torch.zeros_like(counts).to(place),
        counts_R=counts.to(place),
        offsets_R1=offsets.to(place),
        tables_GSP=(),
        cells_GT=(),
        limits=RowLimits(2, 3),
    )


def test_cross(device: str) -> None:
    from sapwood.kernels.triton.cross import cross

    q_THD = torch.randn(sum(COUNTS) + 2, 3, 20, generator=torch.Generator().manual_seed(1))
    plain = filled("cpu")
    plain.plan(batch("cpu"))
    pool = filled(device)
    pool.plan_on_device(batch(device))
    assert pool.of_tokens is not None
    for layer in range(2):
        wanted = plain.run(layer, q_THD, 0.3)[: sum(COUNTS)]
        got = cross(q_THD.to(device), pool.keys[layer], pool.values[layer], pool.of_tokens, pool.lengths_E, 0.3)
        torch.testing.assert_close(got[: sum(COUNTS)].cpu(), wanted, atol=1e-5, rtol=1e-5)
        assert got.isfinite().all()
