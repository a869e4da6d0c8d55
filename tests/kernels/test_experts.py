"""Experts chosen, sorted and multiplied on the device, against their plain twins."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.base.selection import Selection
from sapwood.kernels import PLAIN, RmsNorm, Routed
from sapwood.kernels.experts import compute, select

choice: Any = pytest.importorskip("sapwood.kernels.triton.choice")
fused: Any = pytest.importorskip("sapwood.kernels.triton.experts")
Cut: Any = pytest.importorskip("sapwood.kernels.triton.experts_cut").Cut

# The interpreter has no product of bfloat16.
HERE = pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, id="float32"),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu, id="cuda-bfloat16"),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu, id="cuda-float16"),
    ],
)
SELECTIONS = {
    "softmax": Selection(3),
    "renormalised": Selection(4, renormalised=True),
    "sigmoid": Selection(2, "sigmoid", scale=2.5),
    "groups": Selection(3, "sigmoid", renormalised=True, scale=0.5, groups=4, top_groups=2),
    "groups of one": Selection(3, groups=3, top_groups=1, group_best=1),
    "sparsemix": Selection(2, "sparsemix", slack=0.02),
}
FEW = {"one": Cut(0, 4, 64, 2, 2), "ragged": Cut(0, 16, 32, 4, 1)}
MANY = {"turned": Cut(16, 32, 32, 4, 2, turned=True), "wide": Cut(32, 16, 64, 4, 3)}


class Case:
    """Experts of odd sizes with random weights, scaled so that outputs are about 1."""

    def __init__(self, device: str, dtype: torch.dtype, *, count: int = 12, size: int = 72, inner: int = 40) -> None:
        self._random, self._device, self._dtype = torch.Generator().manual_seed(count), device, dtype
        self.count, self.size = count, size
        self.how = Routed(
            selection=Selection(3, renormalised=True),
            activation="silu",
            gate_up_XOI=self.draw(count, 2 * inner, size, scale=size**-0.5),
            down_XOI=self.draw(count, size, inner, scale=inner**-0.5),
        )

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._random) * scale).to(self._device, self._dtype)

    def biased(self) -> Routed:
        up, down = (self.draw(*weight.shape[:2]) for weight in (self.how.gate_up_XOI, self.how.down_XOI))
        return replace(self.how, gate_up_bias_XO=up, down_bias_XO=down, activation="gelu_tanh", weighs_input=True)


def near(ours: Tensor, theirs: Tensor) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[ours.dtype]
    torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=tolerance, rtol=tolerance)


def twin(x: Tensor, experts: Tensor, weights: Tensor, how: Routed) -> Tensor:
    """In float32, for the experts that were chosen: others may be as good but for rounding."""
    wide = {name: value.float() for name, value in vars(how).items() if isinstance(value, Tensor)}
    logits = torch.full((len(x), how.down_XOI.shape[0]), -torch.inf, device=x.device)
    logits.scatter_(1, experts.long(), weights.log())
    same = replace(how, **wide, offsets_X=None, selection=Selection(experts.shape[1], renormalised=True))
    return compute(x.float(), logits, same, PLAIN.gated)


@HERE
@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("with_offsets", [False, True])
def test_choice(name: str, with_offsets: bool, device: str, dtype: torch.dtype) -> None:
    case, how = Case(device, dtype), SELECTIONS[name]
    if with_offsets and how.score == "sparsemix":
        pytest.skip("has none")
    logits = case.draw(5, 20)[:, :12] * 2
    logits[1, 3:9] = 1.0  # of equal ones the first
    offsets = case.draw(12).float() if with_offsets else None
    experts, weights = choice.choose(logits, replace(case.how, selection=how, offsets_X=offsets))
    expected, expected_weights = select(logits, how, offsets)
    assert experts.tolist() == expected.tolist()
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=1e-5)


@HERE
def test_what_is_no_number_chooses_somebody_and_is_seen(device: str, dtype: torch.dtype) -> None:
    case = Case(device, dtype)
    logits = case.draw(2, 12)
    logits[0] = torch.nan
    experts, weights = choice.choose(logits, case.how)
    assert 0 <= int(experts.min()) <= int(experts.max()) < 12
    assert weights[0].isnan().all()
    assert not weights[1].isnan().any()


@HERE
@pytest.mark.parametrize("num_tokens", [1, 3, 50])
def test_pairs_are_sorted(num_tokens: int, device: str, dtype: torch.dtype) -> None:
    """Whatever the size of the blocks in which they are read."""
    case = Case(device, dtype, count=7)
    experts, _ = choice.choose(case.draw(num_tokens, 7), case.how)
    order, starts = choice.deal(experts, 7, block=32)
    flat = experts.flatten()
    assert order.tolist() == flat.sort(stable=True).indices.tolist()
    assert starts.tolist() == [int((flat < expert).sum()) for expert in range(8)]


@HERE
@pytest.mark.parametrize("cut", FEW)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_few_tokens(cut: str, norm: bool, biased: bool, device: str, dtype: torch.dtype) -> None:
    case = Case(device, dtype)
    how, x = case.biased() if biased else case.how, case.draw(2, 80)[:, :72]
    rms = RmsNorm(case.draw(72).float(), 1e-5) if norm and dtype != torch.float16 else None
    experts, weights = choice.choose(case.draw(2, 12), how)
    ours = fused.of_few(x, rms, experts, weights, how, FEW[cut], FEW[cut])
    normed = x if rms is None else PLAIN.rms_norm(x.float(), *rms)
    near(ours, twin(normed, experts, weights, how))


@HERE
@pytest.mark.parametrize("cut", MANY)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 33])
def test_many_tokens(cut: str, biased: bool, num_tokens: int, device: str, dtype: torch.dtype) -> None:
    """Also where most choose the same expert, which has several tiles then, and others are left alone."""
    case = Case(device, dtype)
    how, x = case.biased() if biased else case.how, case.draw(num_tokens, 80)[:, :72]
    logits = case.draw(num_tokens, 12)
    logits[:, 5] += 4
    experts, weights = choice.choose(logits, how)
    near(fused.of_many(x, experts, weights, how, MANY[cut], MANY[cut]), twin(x, experts, weights, how))
