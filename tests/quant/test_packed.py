"""Packed weights against their dequantised twins, in every form and every build of the kernels."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from sapwood.kernels.cpu.library import Machine, find
from sapwood.quant.packed import PACKINGS, Form, PackedWeights, Product, Stored, packing, stored

Types = gguf.GGMLQuantizationType
SUPERBLOCKS = {Form.Q4_K: (144, 0), Form.Q5_K: (176, 0), Form.Q6_K: (210, 208)}  # bytes, where the float16 factors are
NUM_OUTPUTS, NUM_INPUTS = 75, 512


@pytest.fixture(params=["base", "avx2", "avx2vnni", "avx512", "neon"])
def machine(request: pytest.FixtureRequest) -> Machine:
    library = find(request.param)
    if isinstance(library, str):
        pytest.skip(library)
    return Machine(library, 2)


def rows_of(form: Form) -> tuple[Stored, Tensor]:
    """Random rows as a checkpoint stores them, and their values."""
    random = np.random.default_rng(form)
    if form in SUPERBLOCKS:  # nobody here writes them: any bytes are some values, if the factors are small
        size, place = SUPERBLOCKS[form]
        data = random.integers(0, 256, (NUM_OUTPUTS, NUM_INPUTS // 256, size), dtype=np.uint8)
        count = 1 if form is Form.Q6_K else 2
        factors = random.uniform(0.001, 0.01, (*data.shape[:2], count)).astype(np.float16)
        data[:, :, place : place + 2 * count] = factors.view(np.uint8)
        data = data.reshape(NUM_OUTPUTS, -1)
    else:
        values = random.normal(size=(NUM_OUTPUTS, NUM_INPUTS)).astype(np.float32)
        data = np.ascontiguousarray(quantize(values, Types(form))).view(np.uint8).reshape(NUM_OUTPUTS, -1)
    return Stored(form, data), torch.from_numpy(dequantize(data, Types(form)).astype(np.float32))


@pytest.mark.parametrize("form", list(PACKINGS))
def test_values_and_products(machine: Machine, form: Form) -> None:
    rows, values_OI = rows_of(form)
    weights = PackedWeights(machine, packing(form, NUM_INPUTS, None), NUM_OUTPUTS, NUM_INPUTS)
    weights.put(rows, 0, NUM_OUTPUTS)
    exact = form not in SUPERBLOCKS  # whose scales are rounded to float16
    found = weights.rows(torch.arange(NUM_OUTPUTS), 2.0)
    assert (found - 2 * values_OI).abs().max() <= (0 if exact else 1e-3 * values_OI.abs().max() * 2)
    product = Product(weights)
    for number in (1, 2, 3, 5, 8, 70):
        x_TI = torch.randn(number, NUM_INPUTS, generator=torch.Generator().manual_seed(number))
        expected = x_TI @ values_OI.T
        error = (product(x_TI) - expected).norm() / expected.norm()
        assert error < (2e-6 if form in (Form.F32, Form.F16, Form.BF16) else 1.5e-3)


@pytest.mark.parametrize("form", list(PACKINGS))
def test_eight_bits_of_activations(machine: Machine, form: Form) -> None:
    rows, values_OI = rows_of(form)
    coarse = Machine(machine.library, 2, fine=False)
    weights = PackedWeights(coarse, packing(form, NUM_INPUTS, None), NUM_OUTPUTS, NUM_INPUTS)
    weights.put(rows, 0, NUM_OUTPUTS)
    for number in (1, 3, 20):
        x_TI = torch.randn(number, NUM_INPUTS, generator=torch.Generator().manual_seed(number))
        expected = x_TI @ values_OI.T
        error = (Product(weights)(x_TI) - expected).norm() / expected.norm()
        assert error < (2e-6 if form in (Form.F32, Form.F16, Form.BF16) else 0.02)


@pytest.mark.parametrize("form", list(PACKINGS))
@pytest.mark.parametrize("fine", [False, True])
def test_a_row_has_the_same_bits_beside_any_number_of_others(machine: Machine, form: Form, fine: bool) -> None:
    rows, _ = rows_of(form)
    machine = Machine(machine.library, 2, fine=fine)
    weights = PackedWeights(machine, packing(form, NUM_INPUTS, None), NUM_OUTPUTS, NUM_INPUTS)
    weights.put(rows, 0, NUM_OUTPUTS)
    product, x_TI = Product(weights), torch.randn(67, NUM_INPUTS, generator=torch.Generator().manual_seed(4))
    alone = torch.cat([product(x_TI[row : row + 1]) for row in range(17)])
    for number in (*range(2, 17), 67):
        assert torch.equal(product(x_TI[:number])[:17], alone[:number])


@pytest.mark.parametrize("form", [Form.Q4_0, Form.Q4_1, Form.Q5_1, Form.Q8_0, Form.Q6_K])
@pytest.mark.parametrize(("fine", "most"), [(False, 127), (True, 2039)])
def test_products_are_exact_but_for_the_rounding_of_activations(
    machine: Machine, form: Form, fine: bool, most: int
) -> None:
    """Activations that the integers hold exactly leave float32's own error."""
    rows, values_OI = rows_of(form)
    machine = Machine(machine.library, 2, fine=fine)
    weights = PackedWeights(machine, packing(form, NUM_INPUTS, None), NUM_OUTPUTS, NUM_INPUTS)
    weights.put(rows, 0, NUM_OUTPUTS)
    x_TI = torch.randint(-most, most + 1, (9, NUM_INPUTS), generator=torch.Generator().manual_seed(3)).float()
    x_TI[:, ::32] = most
    x_TI[1], x_TI[2] = most, -most  # as large as sums get
    expected = x_TI.double() @ values_OI.double().T
    scale = (x_TI.double().abs() @ values_OI.double().abs().T).max()
    assert (Product(weights)(x_TI) - expected).abs().max() / scale < (1e-6 if form is not Form.Q6_K else 1e-3)


def test_rows_in_another_order_parts_and_biases(machine: Machine) -> None:
    """Two forms side by side, one put in two goes that meet inside a tile, its rows in another order."""
    first, first_OI = rows_of(Form.Q4_1)
    second, second_OI = rows_of(Form.F16)
    order = np.random.default_rng(0).permutation(NUM_OUTPUTS)
    one, other = (
        PackedWeights(machine, packing(rows.form, NUM_INPUTS, None), NUM_OUTPUTS, NUM_INPUTS)
        for rows in (first, second)
    )
    one.put(Stored(first.form, first.data, order[:21]), 0, 21)
    one.put(Stored(first.form, first.data, order[21:].copy()), 21, NUM_OUTPUTS - 21)
    other.put(second, 0, NUM_OUTPUTS)
    bias = torch.randn(NUM_OUTPUTS)
    x_TI = torch.randn(4, NUM_INPUTS)
    expected = torch.cat([x_TI @ first_OI[order].T, x_TI @ second_OI.T + bias], dim=1)
    found = Product(one, other, biases={1: bias})(x_TI)
    assert (found - expected).norm() / expected.norm() < 1e-3
    assert (found - expected)[:, NUM_OUTPUTS:].abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rounded", "steps"), [("int8", 127), ("int4", 15 / 2)])
def test_rounding(machine: Machine, dtype: torch.dtype, rounded: str, steps: float) -> None:
    values = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    values[3, 32:64] = 0
    weights = PackedWeights(machine, packing(stored(values).form, 96, rounded), 40, 96)  # type: ignore[arg-type]
    weights.put(stored(values), 0, 40)
    groups = values.float().view(40, 3, 32)
    spread = (
        groups.abs().amax(-1, keepdim=True)
        if rounded == "int8"
        else (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 2
    )
    error = (weights.rows(torch.arange(40)).view(40, 3, 32) - groups).abs()
    assert (error <= 0.52 * spread / steps + 1e-3 * groups.abs().amax(-1, keepdim=True)).all()
    assert (error[3, 1] == 0).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_bytes_of_a_file_are_rounded_like_tensors(machine: Machine, kind: str) -> None:
    """Also where they lie at an odd address, and in another order."""
    values_OI = torch.randn(1100, 64, generator=torch.Generator().manual_seed(2))
    data = np.ascontiguousarray(quantize(values_OI.numpy(), Types[kind])).view(np.uint8).reshape(1100, -1)
    odd = np.empty(data.size + 1, np.uint8)[1:].reshape(data.shape)
    odd[:] = data
    order = np.random.default_rng(0).permutation(1100)
    made = []
    for rows in (Stored(Form[kind], odd, order), stored(torch.from_numpy(dequantize(data[order], Types[kind])))):
        weights = PackedWeights(machine, packing(rows.form, 64, "int8"), 1100, 64)
        weights.put(rows, 0, 1100)
        made.append(weights.rows(torch.arange(1100)))
    assert torch.equal(*made)


@pytest.mark.parametrize("form", [Form.Q4_0, Form.Q4_1, Form.Q8_0, Form.Q6_K, Form.F16])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(machine: Machine, form: Form, broken: float) -> None:
    """In every output of its row, and of no other: rounding must not turn it into numbers."""
    rows, _ = rows_of(form)
    weights = PackedWeights(machine, packing(form, NUM_INPUTS, None), NUM_OUTPUTS, NUM_INPUTS)
    weights.put(rows, 0, NUM_OUTPUTS)
    product, x_TI = Product(weights), torch.randn(5, NUM_INPUTS)
    sound = product(x_TI)
    for place in (0, 33, NUM_INPUTS - 1):
        x_TI[2] = 1.0
        x_TI[2, place] = broken
        found = product(x_TI)
        assert not found[2].isfinite().any()
        assert torch.equal(found[[0, 1, 3, 4]], sound[[0, 1, 3, 4]])
        assert not product(x_TI[2:3]).isfinite().any()


def test_activations_too_small_to_round_count_as_nothing(machine: Machine) -> None:
    rows, _ = rows_of(Form.Q8_0)
    weights = PackedWeights(machine, packing(Form.Q8_0, NUM_INPUTS, None), NUM_OUTPUTS, NUM_INPUTS)
    weights.put(rows, 0, NUM_OUTPUTS)
    for size in (1e-36, 1e-38, 1e-42):
        assert Product(weights)(torch.full((2, NUM_INPUTS), size)).abs().max() < 1e-30


def test_rows_that_do_not_fit_are_refused(machine: Machine) -> None:
    with pytest.raises(ValueError, match="do not fill groups"):
        PackedWeights(machine, packing(Form.Q4_0, 48, None), 16, 48)
    with pytest.raises(ValueError, match="do not fill groups"):
        PackedWeights(machine, packing(Form.Q6_K, 272, None), 16, 272)
    data = np.zeros((16, 144), np.uint8)
    weights = PackedWeights(machine, packing(Form.Q4_K, 288, None), 16, 288)
    with pytest.raises(ValueError, match="are not 16 rows of 288 inputs"):
        weights.put(Stored(Form.Q4_K, data), 0, 16)
    weights = PackedWeights(machine, packing(Form.Q4_K, 256, None), 16, 256)
    weights.put(Stored(Form.Q4_K, data), 0, 16)
    for rows, first, number in (
        (Stored(Form.Q4_K, data), 1, 16),
        (Stored(Form.Q4_K, data[:15]), 0, 16),
        (Stored(Form.Q4_K, data, np.array([3, 16])), 0, 2),
    ):
        with pytest.raises(ValueError):
            weights.put(rows, first, number)


def test_inputs_that_do_not_fill_groups_are_not_rounded() -> None:
    assert packing(Form.F32, 40, "int8") == packing(Form.F32, 40, None)
    assert packing(Form.Q8_0, 64, "int4") == packing(Form.Q8_0, 64, None)
