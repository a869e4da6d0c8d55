"""What every way to store weights gets from its base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.arch.parts import Linear, Part
from sapwood.kernels import PLAIN, RmsNorm
from sapwood.quant.base import Weights
from sapwood.quant.plain import PlainWeights


class Halved(Weights):
    """Stores half of its weight, and has a product of its own."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor) -> None:
        super().__init__(PLAIN)
        self._half_OI, self._bias_O = weight_OI / 2, bias_O

    def forward(self, x_TI: Tensor) -> Tensor:
        return 2 * (x_TI @ self._half_OI.T) + self._bias_O


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_product_of_its_own_between_the_same_neighbours(activation: Any, with_residual: bool) -> None:
    torch.manual_seed(0)
    part = Linear(12, (Part("gate", 10), Part("up", 10)), "out", bias=True)
    plain = PlainWeights(part, torch.device("cpu"), torch.float32, PLAIN)
    for parameter in plain.parameters():
        parameter.data.normal_()
    assert plain.bias is not None
    own = Halved(plain.weight.data, plain.bias.data)
    x, residual, norm = torch.randn(3, 12), torch.randn(3, 12), RmsNorm(torch.rand(12), 1e-6)
    got, expected = (
        weights.normed(x, residual.clone() if with_residual else None, norm, activation) for weights in (own, plain)
    )
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert expected[0].shape == (3, 20 if activation is None else 10)
    torch.testing.assert_close(expected[1], x + residual if with_residual else x)
    torch.testing.assert_close(own(x), plain(x))
