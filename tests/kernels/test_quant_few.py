"""The product of few tokens with quantised weights against a product with what they stand for."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import random
from typing import Any

import pytest
import torch

from sapwood.kernels import PLAIN, RmsNorm
from tests.kernels.quantised import FORMS, moved, random_planes

few: Any = pytest.importorskip("sapwood.kernels.triton.quant_few")

# The interpreter has no product of bfloat16.
HERE = [
    pytest.param("cpu", torch.float32, id="float32"),
    pytest.param("cpu", torch.float16, id="float16"),
    pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu, id="cuda-bfloat16"),
    pytest.param("cuda", torch.float16, marks=pytest.mark.gpu, id="cuda-float16"),
]
CUTS = [few.Setting(True, 16, 4, 32, 4, 3), few.Setting(True, 32, 2, 64, 2, 4), few.Setting(True, 64, 2, 128, 4, 2)]
ONE = [few.Setting(False, 4, 2, 64, 2, 2), few.Setting(False, 8, 1, 128, 4, 1)]


@pytest.mark.parametrize(("device", "dtype"), HERE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_product(device: str, dtype: torch.dtype, form: str, seed: int) -> None:
    """Random sizes with random neighbours, scales for any groups, zero points, columns in any order."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    pick, numbers = random.Random(f"{form} {seed}"), torch.Generator().manual_seed(seed)
    tokens = pick.choice([1, 1, 2, 3, 7, 16])
    cut = pick.choice(ONE if tokens == 1 and pick.random() < 0.4 else CUTS)
    inputs, outputs = pick.choice([64, 192, 256, 512]), 2 * pick.choice([8, 24, 33, 64])
    group = pick.choice([0, 16, 32, 64, 128])
    planes, values = random_planes(
        numbers, form, outputs, inputs, group=group if inputs % max(group, 1) == 0 else 32,
        tall=pick.choice([1, 2]), offset=group > 0 and pick.random() < 0.5, ordered=pick.random() < 0.3,
    )  # fmt: skip
    x, residual = (torch.randn(tokens, inputs + 8, generator=numbers)[:, :inputs].to(device, dtype) for _ in range(2))
    bias = torch.randn(outputs, generator=numbers).to(device, dtype) if pick.random() < 0.5 else None
    norm = RmsNorm((1 + torch.randn(inputs, generator=numbers) / 4).to(device), 1e-5) if pick.random() < 0.7 else None
    behind = residual if norm is not None and pick.random() < 0.7 else None
    activation: Any = pick.choice([None, "silu", "gelu_tanh"])

    before = x.clone()
    y, total = few.product(x, moved(planes, device), bias, norm, behind, activation, cut)
    stream = x if behind is None else x + residual
    wide = None if bias is None else bias.float()
    expected, _ = PLAIN.linear(stream.float(), values.to(device), wide, norm, None, activation)
    tolerance = {torch.float32: 1e-4, torch.float16: 6e-3, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(y, expected.to(dtype), atol=tolerance, rtol=tolerance)
    assert torch.equal(total, stream)
    assert torch.equal(x, before)
