"""What kernels read stands for the values that a checkpoint has, in each way to store them."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from sapwood.kernels.ggml import FORMS, of_blocks
from sapwood.kernels.planes import E2M1, Planes, of_coded, of_grouped, of_scaled

widen: Any = pytest.importorskip("sapwood.kernels.triton.quant_widen")
HERE = "cuda" if torch.cuda.is_available() else "cpu"


def values(planes: Planes | None) -> Tensor:
    assert planes is not None
    moved = {name: one.to(HERE) for name, one in planes.tensors.items()}
    return widen.widened(planes._replace(**moved), torch.float32).cpu()


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(1, 1), (200, 1), (2, 3), (200, 3)], ids=["whole", "rows", "blocks", "strips"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_scaled(shape: tuple[int, int], dtype: torch.dtype, numbers: torch.Generator) -> None:
    codes = (torch.randn(200, 320, generator=numbers) * 40).to(dtype)
    scale = torch.rand(shape, generator=numbers)
    times = {1: 200, 2: 128, 200: 1}[shape[0]], {1: 320, 3: 128}[shape[1]]
    wide = scale.repeat_interleave(times[0], 0)[:200].repeat_interleave(times[1], 1)[:, :320]
    torch.testing.assert_close(values(of_scaled(codes, scale)), codes.float() * wide)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128, 512])
@pytest.mark.parametrize("zeros", ["none", "middle", "some"])
def test_grouped(bits: int, group: int, zeros: str, numbers: torch.Generator) -> None:
    middle, most = 1 << (bits - 1), 1 << bits
    codes = torch.randint(0, most, (24, 512), generator=numbers)
    scale_OG = torch.rand(24, 512 // group, generator=numbers)
    zero_OG = {
        "none": None,
        "middle": torch.full(scale_OG.shape, middle, dtype=torch.uint8),
        "some": torch.randint(0, most, scale_OG.shape, generator=numbers).to(torch.uint8),
    }[zeros]
    order_I = torch.randperm(512, generator=numbers)
    stored = (codes[:, ::2] | codes[:, 1::2] << 4 if bits == 4 else codes).to(torch.uint8)
    planes = of_grouped(stored, bits, scale_OG, zero_OG, order_I)
    assert planes is not None
    assert (planes.offset_GS is not None) == (zeros == "some")
    less = (middle if zero_OG is None else zero_OG.float().repeat_interleave(group, 1)) * torch.ones(24, 512)
    wide = (codes.float() - less) * scale_OG.repeat_interleave(group, 1)
    torch.testing.assert_close(values(planes)[:, order_I], wide, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("scales", ["floats", "fp8", "e8m0"])
@pytest.mark.parametrize("table", [E2M1, tuple(np.linspace(-1, 1, 16) ** 3)], ids=["e2m1", "table"])
def test_coded(scales: str, table: tuple[float, ...], numbers: torch.Generator) -> None:
    codes = torch.randint(0, 16, (24, 128), generator=numbers)
    scale_OG = torch.rand(24, 8, generator=numbers)
    given = scale_OG
    if scales == "fp8":
        given = scale_OG.to(torch.float8_e4m3fn)
        scale_OG = given.float()
    elif scales == "e8m0":
        given = torch.randint(120, 134, scale_OG.shape, generator=numbers).to(torch.uint8)
        scale_OG = 2.0 ** (given.float() - 127)
    row_O = torch.rand(24, generator=numbers)
    planes = of_coded((codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), torch.tensor(table), given, row_O)
    wide = torch.tensor(table).float()[codes] * scale_OG.repeat_interleave(16, 1) * row_O[:, None]
    torch.testing.assert_close(values(planes), wide)


def random_blocks(form: int, rows: int, blocks: int) -> np.ndarray[Any, Any]:
    """Random bytes, but scales that are finite."""
    random = np.random.default_rng(form)
    data = random.integers(0, 256, (rows, blocks, FORMS[form][0]), dtype=np.uint8)
    halves = {10: (80, 82), 11: (108,), 14: (208,)}.get(form, (0, 2) if form in (3, 7, 12, 13) else (0,))
    for at in halves:
        data[..., at : at + 2] = random.uniform(-1, 1, (rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("form", FORMS)
def test_blocks(form: int) -> None:
    """As the package that defines them reads them; scales are rounded to float16."""
    data = random_blocks(form, 6, 2)
    expected = torch.from_numpy(dequantize(data, GGMLQuantizationType(form)))
    planes = of_blocks([(form, torch.from_numpy(data))])
    assert planes is not None
    assert planes.pair if form in (2, 3, 10, 11, 12, 20, 23) else not planes.pair
    torch.testing.assert_close(values(planes), expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())


def test_mixed_blocks() -> None:
    """Parts of one weight in different forms."""
    parts = [(form, random_blocks(form, 4, number)) for form, number in ((12, 2), (14, 2), (8, 16), (23, 2))]
    planes = of_blocks([(form, torch.from_numpy(data)) for form, data in parts])
    expected = torch.from_numpy(np.concatenate([dequantize(d, GGMLQuantizationType(form)) for form, d in parts]))
    torch.testing.assert_close(values(planes), expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())


def test_what_kernels_cannot_read() -> None:
    assert of_scaled(torch.zeros(8, 24, dtype=torch.int8), torch.ones(1, 1)) is None
    assert of_grouped(torch.zeros(8, 36, dtype=torch.uint8), 4, torch.ones(8, 9)) is None
    assert of_coded(torch.zeros(8, 12, dtype=torch.uint8), torch.tensor(E2M1), torch.ones(8, 3)) is None
