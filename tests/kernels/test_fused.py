"""The fused elementwise kernels against their plain twins."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import pytest
import torch
from torch import Tensor

from sapwood.kernels import PLAIN, Activation, Kernels, LayerNorm

pytest.importorskip("triton")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    return str(request.param)


@pytest.fixture
def fused() -> Kernels:
    from sapwood.kernels.triton.fused import KERNELS

    return KERNELS


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def draw(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random values in a view whose rows lie apart."""
    random = torch.Generator().manual_seed(sum(shape))
    wide = torch.randn(*shape[:-1], shape[-1] + 8, generator=random).to(device, dtype)
    return wide[..., : shape[-1]]


def same(got: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("scale", [1.0, 3.5])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_embed(fused: Kernels, device: str, dtype: torch.dtype, scale: float, kind: torch.dtype) -> None:
    weight = draw(7, 2100, device=device, dtype=dtype).contiguous()
    ids = torch.tensor([6, 0, 3, 3], device=device, dtype=kind)
    same(fused.embed(ids, weight, scale), PLAIN.embed(ids, weight, scale))


@pytest.mark.parametrize("size", [1, 96, 576])
def test_rms_norm(fused: Kernels, device: str, dtype: torch.dtype, size: int) -> None:
    x, weight = draw(3, size, device=device, dtype=dtype), draw(size, device=device).contiguous()
    before = x.clone()
    same(fused.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    assert torch.equal(x, before)


def test_add_rms_norm(fused: Kernels, device: str, dtype: torch.dtype) -> None:
    x, weight = draw(3, 96, device=device, dtype=dtype), draw(96, device=device).contiguous()
    residual = draw(4, 96, device=device, dtype=dtype)[1:]
    before = x.clone()
    expected = PLAIN.add_rms_norm(x, residual.clone(), weight, 1e-6)
    normed, total = fused.add_rms_norm(x, residual, weight, 1e-6)
    same(normed, expected[0])
    same(total, expected[1])
    assert torch.equal(x, before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_layer_norm(fused: Kernels, device: str, dtype: torch.dtype, added: bool, bias: bool) -> None:
    x, weight = draw(3, 96, device=device, dtype=dtype) + 1, draw(96, device=device).contiguous()
    residual = draw(4, 96, device=device, dtype=dtype)[1:] if added else None
    norm = LayerNorm(weight, 1e-5, draw(96, device=device).contiguous() if bias else None)
    expected = PLAIN.layer_norm(x, None if residual is None else residual.clone(), norm)
    for got, wanted in zip(fused.layer_norm(x, residual, norm), expected, strict=True):
        same(got, wanted)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu", "relu", "relu2"])
@pytest.mark.parametrize("size", [24, 1100])
def test_activations(fused: Kernels, device: str, dtype: torch.dtype, activation: Activation, size: int) -> None:
    x = 3 * draw(2, 2 * size, device=device, dtype=dtype)
    same(fused.gated(x, activation), PLAIN.gated(x, activation))
    same(fused.activated(x, activation), PLAIN.activated(x, activation))
