"""The product of few tokens against its plain twin."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.kernels import PLAIN, Kernels, RmsNorm

few: Any = pytest.importorskip("sapwood.kernels.triton.few")

# The interpreter has no product of bfloat16.
HERE = [
    pytest.param("cpu", torch.float32, id="float32"),
    pytest.param("cpu", torch.float16, id="float16"),
    pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu, id="cuda-bfloat16"),
    pytest.param("cuda", torch.float16, marks=pytest.mark.gpu, id="cuda-float16"),
]
CUTS = {"dot": few.Setting(True, 16, 32, 4, 3), "wide": few.Setting(True, 64, 64, 4, 4)}
ONE = {"plain": few.Setting(False, 4, 64, 2, 2), "long": few.Setting(False, 8, 256, 4, 1)}


class Case:
    """Random arguments in views whose rows lie apart; the weight is scaled so that outputs are about 1."""

    def __init__(self, seed: int, tokens: int, inputs: int, outputs: int, device: str, dtype: torch.dtype) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._device, self._dtype = device, dtype
        self.x, self.residual = (self.draw(tokens, inputs + 8)[:, :inputs] for _ in range(2))
        self.weight = self.draw(outputs, inputs, scale=inputs**-0.5)
        self.bias = self.draw(outputs)
        gain = 1 + torch.randn(inputs, generator=self._random) / 4
        self.norm = RmsNorm(gain.to(device), 1e-5)

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._random) * scale).to(self._device, self._dtype)


def check(case: Case, cut: Any, *, bias: bool, norm: bool, residual: bool, activation: Any) -> None:
    x, before = case.x, case.x.clone()
    arguments = (
        case.bias if bias else None,
        case.norm if norm else None,
        case.residual if residual else None,
        activation,
    )
    y, total = few.product(x, case.weight, *arguments, cut=cut)
    wide = [None if a is None else a.float() for a in (x, case.weight, arguments[0])]
    stream = (x + case.residual) if residual else x
    expected, _ = PLAIN.linear(stream.float(), wide[1], wide[2], arguments[1], None, activation)  # type: ignore[arg-type]
    tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[x.dtype]
    torch.testing.assert_close(y, expected.to(x.dtype), atol=tolerance, rtol=tolerance)
    assert torch.equal(total, stream)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("device", "dtype"), HERE)
@pytest.mark.parametrize("seed", range(24))
def test_product(device: str, dtype: torch.dtype, seed: int) -> None:
    """Random sizes, odd ones too, with random neighbours."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    pick = random.Random(seed)
    tokens = pick.choice([1, 1, 2, 3, 7, 16])
    cut = pick.choice(list((ONE if tokens == 1 and pick.random() < 0.7 else CUTS).values()))
    inputs, outputs = pick.choice([32, 96, 128, 129, 320]), 2 * pick.choice([1, 24, 33, 64])
    norm = pick.random() < 0.7
    check(
        Case(seed, tokens, inputs, outputs, device, dtype), cut, bias=pick.random() < 0.5, norm=norm,
        residual=norm and pick.random() < 0.7, activation=pick.choice([None, "silu", "gelu_tanh"]),
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
def test_settings(tokens: int) -> None:
    """Products of the sizes that real models have, cut as in use, captured behind one another in a graph."""
    for inputs, outputs in ((1024, 4096), (4096, 28672), (3072, 1024), (4096, 1000)):
        case = Case(tokens, tokens, inputs, outputs, "cuda", torch.bfloat16)
        check(case, None, bias=False, norm=True, residual=True, activation="silu")
        check(case, None, bias=True, norm=False, residual=False, activation=None)


@pytest.mark.gpu
def test_chain_in_a_graph() -> None:
    """Kernels that start before the one before them has ended must still wait for what it writes."""
    from sapwood.kernels.triton.fused import KERNELS

    cases = [Case(i, 4, 1024, 2048, "cuda", torch.bfloat16) for i in range(6)]
    outs = [torch.randn(1024, 1024, device="cuda").to(torch.bfloat16) / 32 for _ in cases]
    x0 = cases[0].x

    def chain(kernels: Kernels) -> Tensor:
        x, residual = x0.clone(), None  # it becomes the residual, which may be overwritten
        for case, out in zip(cases, outs, strict=True):
            x, residual = kernels.linear(x, case.weight, None, case.norm, residual, "silu")
            x = kernels.linear(x, out)[0]
        return kernels.add_rms_norm(x, residual, *cases[0].norm)[0]

    for _ in range(2):
        chain(KERNELS)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = chain(KERNELS)
    for _ in range(20):
        got.zero_()
        graph.replay()
        torch.testing.assert_close(got, chain(PLAIN), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_who_takes_few_tokens(dtype: torch.dtype) -> None:
    """The kernel gets few tokens of 16 bits; in float16 what is not normed yet stays out of it."""
    calls = []

    def spy(*arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append(arguments)
        return PLAIN.linear(*arguments)

    kernels = Kernels(**{**vars(PLAIN), "few": spy, "few_tokens": 4})
    for tokens, type_, taken in ((4, dtype, True), (5, dtype, False), (4, torch.float32, False)):
        case = Case(0, tokens, 32, 64, "cpu", type_)
        calls.clear()
        arguments = (case.x, case.weight, case.bias, case.norm)
        got = kernels.linear(*arguments, case.residual.clone(), "silu")
        expected = PLAIN.linear(*arguments, case.residual.clone(), "silu")
        assert [torch.equal(a, b) for a, b in zip(got, expected, strict=True)] == [True, True]
        assert len(calls) == taken
        assert not (calls and type_ == torch.float16 and calls[0][3] is not None)
