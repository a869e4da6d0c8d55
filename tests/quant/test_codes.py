"""Codes with scales, as checkpoints of many formats have them, packed for the CPU's kernels: against the values they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sapwood.kernels.cpu.library import Machine, find
from sapwood.quant.packed import CodeKind, Codes, PackedWeights, Product

NUM_OUTPUTS, NUM_INPUTS = 43, 384
E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(params=["base", "avx2", "avx2vnni", "avx512", "neon"])
def machine(request: pytest.FixtureRequest) -> Machine:
    library = find(request.param)
    if isinstance(library, str):
        pytest.skip(library)
    return Machine(library, 2)


def codes_of(kind: CodeKind, group: int, *, zeros: bool = False, half: bool = True) -> tuple[Codes, Tensor]:
    """Random ones and their float32 values."""
    random = torch.Generator().manual_seed(group)
    shape, groups = (NUM_OUTPUTS, NUM_INPUTS), (NUM_OUTPUTS, NUM_INPUTS // group)
    four = kind in ("u4", "t4")
    codes_OI = torch.randint(16 if four else 256, shape, generator=random, dtype=torch.uint8)
    if kind == "e4m3":
        codes_OI[(codes_OI & 127) == 127] = 1  # no number
    scale_OG = torch.rand(groups, generator=random) / 16 + 1e-3
    scale_OG = scale_OG.half().float() if half else scale_OG
    zero_OG = -torch.randint(16 if four else 128, groups, generator=random).float() if zeros else None
    table_16 = (E2M1 if half else torch.randn(16, generator=random)) if kind == "t4" else None
    if kind == "u4":
        values_OI = codes_OI.float() - (0 if zeros else 8)
    elif kind == "i8":
        values_OI = codes_OI.float() - 128
    elif kind == "t4":
        assert table_16 is not None
        values_OI = table_16[codes_OI.long()]
    else:
        values_OI = codes_OI.view(torch.float8_e4m3fn).float()
    values_OGI = values_OI.unflatten(1, (-1, group)) + (0 if zero_OG is None else zero_OG[..., None])
    stored = codes_OI[:, 0::2] | codes_OI[:, 1::2] << 4 if four else codes_OI
    return Codes(kind, stored, scale_OG, zero_OG, table_16), (values_OGI * scale_OG[..., None]).flatten(1)


def packed(machine: Machine, codes: Codes) -> PackedWeights:
    weights = PackedWeights(machine, codes.packing, len(codes.codes), codes.num_inputs)
    weights.put_codes(codes)
    return weights


CASES = [
    *(("u4", group, zeros, half) for group in (32, 128, 384) for zeros in (False, True) for half in (False, True)),
    *(("i8", group, zeros, half) for group in (32, 384) for zeros in (False, True) for half in (False, True)),
    *(("t4", group, False, half) for group in (16, 32, 128) for half in (False, True)),
    *(("e4m3", group, False, False) for group in (128, 384)),
]


@pytest.mark.parametrize(("kind", "group", "zeros", "half"), CASES)
def test_values_and_products(machine: Machine, kind: CodeKind, group: int, zeros: bool, half: bool) -> None:
    codes, values_OI = codes_of(kind, group, zeros=zeros, half=half)
    weights = packed(machine, codes)
    assert weights.packing.wide == (not half or kind == "e4m3")
    found = weights.rows(torch.arange(NUM_OUTPUTS), 2.0)
    off = 0.0 if kind != "t4" or half else float(values_OI.abs().max()) / 16000  # tables that are not integers
    torch.testing.assert_close(found, 2 * values_OI, rtol=1e-6, atol=off)
    product, x_TI = Product(weights), torch.randn(35, NUM_INPUTS, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([product(x_TI[row : row + 1]) for row in range(17)])
    for number in (1, 2, 3, 5, 8, 17, 35):
        found, expected = product(x_TI[:number]), x_TI[:number] @ values_OI.T
        assert (found - expected).norm() / expected.norm() < (2e-6 if kind == "e4m3" else 1.5e-3)
        assert torch.equal(found[:17], alone[:number])  # the same bits in any company


@pytest.mark.parametrize(("kind", "zeros"), [("u4", True), ("t4", False)])
def test_inputs_in_another_order_parts_and_biases(machine: Machine, kind: CodeKind, zeros: bool) -> None:
    codes, values_OI = codes_of(kind, 64, zeros=zeros)
    order_I = torch.randperm(NUM_INPUTS, generator=torch.Generator().manual_seed(2)).int()
    parts = [codes.rows(slice(0, 19)), codes.rows(slice(19, None))]
    bias_O = torch.randn(24)
    product = Product(*(packed(machine, part) for part in parts), biases={1: bias_O}, order_I=order_I)
    x_TI = torch.randn(6, NUM_INPUTS, generator=torch.Generator().manual_seed(3))
    expected = x_TI[:, order_I.long()] @ values_OI.T
    expected[:, 19:] += bias_O
    assert (product(x_TI) - expected).norm() / expected.norm() < 1.5e-3
    assert torch.equal(product(x_TI[:1]), product(x_TI)[:1])
