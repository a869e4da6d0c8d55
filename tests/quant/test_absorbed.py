"""Weights that expand latents, turned over: the same numbers, whatever they are stored as and wherever a head's rows begin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sapwood.arch.parts import Linear, Part
from sapwood.kernels import PLAIN
from sapwood.kernels.cpu.library import Machine, find
from sapwood.quant.absorbed import absorb
from sapwood.quant.packed import PackedLinear, Rounded

HEADS, PLAIN_ROWS, VALUES, RANK = 3, 20, 13, 64


def leaf(rounded: Rounded | None, order_R: Tensor | None = None) -> PackedLinear:
    library = find()
    if isinstance(library, str):
        pytest.skip(library)
    part = Linear(RANK, (Part("up", HEADS * (PLAIN_ROWS + VALUES)),), None)
    made = PackedLinear(part, Machine(library, 2), rounded, PLAIN)
    made.randomize(torch.Generator().manual_seed(0))
    made.order_I = order_R
    made.finish()
    return made


@pytest.mark.parametrize("rounded", [None, "int8", "int4"])
def test_products_of_heads_are_those_of_all(rounded: Rounded | None) -> None:
    """Values to the last bit; keys, from the other side, as exactly as float16 is."""
    made = leaf(rounded)
    whole, size = made.product, made.nbytes
    rows_HXR = made.first.rows(torch.arange(HEADS * (PLAIN_ROWS + VALUES))).unflatten(0, (HEADS, -1))
    sums_TR, plain_TN = (
        torch.randn(5, size, generator=torch.Generator().manual_seed(1)) for size in (RANK, PLAIN_ROWS)
    )
    keys, values = absorb(made, HEADS, PLAIN_ROWS)
    for head, found_TX in enumerate(whole(sums_TR).unflatten(1, (HEADS, -1)).unbind(1)):
        assert torch.equal(values[head](sums_TR), found_TX[:, PLAIN_ROWS:])
        torch.testing.assert_close(keys[head](plain_TN), plain_TN @ rows_HXR[head, :PLAIN_ROWS], atol=1e-3, rtol=1e-3)
    assert made.nbytes < 4 * size


def test_inputs_in_another_order() -> None:
    order_R = torch.randperm(RANK, generator=torch.Generator().manual_seed(2)).int()
    made = leaf("int8", order_R)
    whole = made.product
    sums_TR = torch.randn(5, RANK, generator=torch.Generator().manual_seed(1))
    keys, values = absorb(made, HEADS, PLAIN_ROWS)
    found_THX = whole(sums_TR).unflatten(1, (HEADS, -1))
    for head in range(HEADS):
        torch.testing.assert_close(values[head](sums_TR), found_THX[:, head, PLAIN_ROWS:], atol=2e-3, rtol=1e-3)
        keys_RN = keys[head](torch.eye(PLAIN_ROWS)).T
        torch.testing.assert_close(sums_TR @ keys_RN, found_THX[:, head, :PLAIN_ROWS], atol=2e-3, rtol=1e-3)
