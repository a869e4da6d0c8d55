"""Masks on logits: the kernel against its twin, and both against numpy."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapwood.sampling import masks

pytest.importorskip("triton")

from sapwood.kernels.triton import mask


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    return str(request.param)


def wanted(logits_NV: Tensor, places: list[int], bits_MW: np.ndarray) -> Tensor:
    flags = np.unpackbits(bits_MW.view(np.uint8), axis=1, bitorder="little")[:, : logits_NV.shape[1]]
    some = logits_NV[places].clone()
    some[torch.from_numpy(flags == 0)] = -torch.inf
    return some


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab", "extra"), [(1, 0), (31, 0), (32, 0), (33, 2), (300, 0), (4097, 1)])
def test_kernel(device: str, dtype: torch.dtype, vocab: int, extra: int) -> None:
    chance = np.random.default_rng(vocab)
    logits_NV = torch.from_numpy(chance.normal(size=(6, vocab + 3))).to(dtype)[:, :vocab]  # rows with a stride
    places = [4, 0, 3]
    bits_MW = chance.integers(-(2**31), 2**31, (3, -(-vocab // 32) + extra)).astype(np.int32)
    want = wanted(logits_NV, places, bits_MW)
    on_device = logits_NV.to(device)
    places_M, bits = torch.tensor(places, device=device), torch.from_numpy(bits_MW).to(device)
    out_MV = torch.empty(3, vocab, dtype=dtype, device=device)
    mask.launch(on_device, places_M, bits, out_MV, gather=True)
    assert torch.equal(out_MV.cpu(), want)
    assert torch.equal(on_device.cpu(), logits_NV)
    whole = on_device.clone()
    mask.launch(whole, places_M, bits, whole, gather=False)
    assert torch.equal(whole.cpu()[places], want)
    others = [row for row in range(6) if row not in places]
    assert torch.equal(whole.cpu()[others], logits_NV[others])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5), st.randoms(use_true_random=False))
def test_twin(vocab: int, rows: int, chance) -> None:
    logits_NV = torch.tensor([[chance.random() for _ in range(vocab)] for _ in range(rows)])
    places = chance.sample(range(rows), chance.randint(1, rows))
    words = [[chance.randrange(-(2**31), 2**31) for _ in range(-(-vocab // 32))] for _ in places]
    bits_MW = np.array(words, np.int32)
    want = wanted(logits_NV, places, bits_MW)
    places_M, bits = torch.tensor(places), torch.from_numpy(bits_MW)
    assert torch.equal(masks.restricted(logits_NV, places_M, bits), want)
    masks.restrict(logits_NV, places_M, bits)
    assert torch.equal(logits_NV[places], want)
