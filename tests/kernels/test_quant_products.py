"""Products of more tokens with quantised weights, rounding of activations, and widening, against plain PyTorch."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.kernels import PLAIN, RmsNorm
from sapwood.kernels.planes import MOST_TILES, Planes
from tests.kernels.quantised import FORMS, moved, random_planes

many: Any = pytest.importorskip("sapwood.kernels.triton.quant_many")
scaled: Any = pytest.importorskip("sapwood.kernels.triton.quant_scaled")
rounding: Any = pytest.importorskip("sapwood.kernels.triton.quant_round")
quantised: Any = pytest.importorskip("sapwood.kernels.triton.quantised")
widen: Any = pytest.importorskip("sapwood.kernels.triton.quant_widen")

HERE = [
    pytest.param("cpu", torch.float32, id="float32"),
    pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu, id="cuda-bfloat16"),
    pytest.param("cuda", torch.float16, marks=pytest.mark.gpu, id="cuda-float16"),
]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def skip_compiled(device: str) -> None:
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")


@pytest.mark.parametrize(("device", "dtype"), HERE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_many(device: str, dtype: torch.dtype, form: str, seed: int) -> None:
    """The product, and the weights themselves."""
    skip_compiled(device)
    pick, numbers = random.Random(f"{form} {seed}"), torch.Generator().manual_seed(seed)
    tokens, inputs, outputs = pick.choice([1, 17, 40, 70]), pick.choice([64, 192, 512]), pick.choice([16, 66, 130])
    group = pick.choice([0, 16, 32, 64, 128])
    planes, values = random_planes(
        numbers, form, outputs, inputs, group=group if inputs % max(group, 1) == 0 else 32,
        tall=pick.choice([1, 4]), offset=group > 0 and pick.random() < 0.5, ordered=pick.random() < 0.3,
    )  # fmt: skip
    planes = moved(planes, device)
    x = torch.randn(tokens, inputs + 8, generator=numbers)[:, :inputs].to(device, dtype)
    bias = torch.randn(outputs, generator=numbers).to(device, dtype) if pick.random() < 0.5 else None
    y = many.product(x, planes, bias, many.Setting(64, pick.choice([16, 64]), 64, 4, 3, pick.choice([1, 3])))
    assert planes.arrived is None or not planes.arrived.any()
    expected = torch.nn.functional.linear(x.float(), values.to(device), None if bias is None else bias.float())
    torch.testing.assert_close(y, expected.to(dtype), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    close = TOLERANCE[dtype] / 4
    torch.testing.assert_close(widen.widened(planes, dtype), values.to(device, dtype), atol=close, rtol=close)


@pytest.mark.parametrize("outputs", [64, 4096, 6144, 12288, 28672, 106496, 262144])
@pytest.mark.parametrize("tokens", [1, 9, 32, 33, 64, 128, 320, 512, 8192])
def test_settings(outputs: int, tokens: int) -> None:
    """There are counters for all tiles that are cut along their inputs, and tiles of blocks are within one."""
    codes = torch.empty(outputs, 128, dtype=torch.uint8, device="meta")
    for planes in (
        Planes("fp8", 128, codes, rounding="token"),
        Planes("fp8", 128, codes, group=128, tall=128, rounding="block"),
        Planes("uint4", 256, codes, pair=128, group=128),
        Planes("uint4", 256, codes, pair=16, group=16),
    ):
        cuts = [quantised.many_setting(planes, tokens)]
        if planes.rounding is not None:
            cuts.append(quantised.eight_setting(planes, tokens))
        for cut in filter(None, cuts):
            assert cut.parts == 1 or -(-outputs // cut.rows) * -(-tokens // cut.tokens) <= MOST_TILES
            assert planes.tall == 1 or (128 % cut.rows == 0 and 128 % cut.depth == 0)


def draw_codes(numbers: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return (torch.randn(shape, generator=numbers) * 30).to(dtype)


@pytest.mark.parametrize(("device", "dtype"), HERE)
@pytest.mark.parametrize("codes", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("tokens", "parts"), [(1, 1), (33, 2), (70, 3)])
def test_scaled(device: str, dtype: torch.dtype, codes: torch.dtype, blocks: bool, tokens: int, parts: int) -> None:
    skip_compiled(device)
    numbers = torch.Generator().manual_seed(tokens)
    inputs, outputs = (384, 200) if blocks else (160, 200)
    x, weight = draw_codes(numbers, codes, tokens, inputs), draw_codes(numbers, codes, outputs, inputs)
    groups, tall = (inputs // 128, 2) if blocks else (1, outputs)
    x_scale_GT, scale_GS = (torch.rand(groups, n, generator=numbers) / 200 for n in (tokens, tall))
    wide_x = x.float() * x_scale_GT.T.repeat_interleave(-(-inputs // groups), 1)[:, :inputs]
    rows = torch.arange(outputs) // (128 if blocks else 1)
    wide = weight.float() * scale_GS.T[rows].repeat_interleave(-(-inputs // groups), 1)[:, :inputs]
    bias = torch.randn(outputs, generator=numbers).to(device, dtype)
    if codes == torch.int8 and blocks and device == "cpu":
        pytest.skip("the interpreter adds integers up in floats only")
    y = scaled.product(
        x.to(device), x_scale_GT.to(device), weight.to(device), scale_GS.to(device) if blocks else None,
        None if blocks else scale_GS[0].to(device), bias, dtype, scaled.Setting(64, 32, 128 if blocks else 64, 4, 3, parts),
        torch.zeros(64, dtype=torch.int32, device=device),
    )  # fmt: skip
    expected = (wide_x @ wide.T).to(device) + bias.float()
    torch.testing.assert_close(y, expected.to(dtype), atol=TOLERANCE[dtype], rtol=2 * TOLERANCE[dtype])


@pytest.mark.parametrize(("device", "dtype"), HERE)
@pytest.mark.parametrize("codes", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
@pytest.mark.parametrize("inputs", ["token", "tensor", "block"])
@pytest.mark.parametrize("before", ["nothing", "norm", "sum", "gate"])
def test_rounded(device: str, dtype: torch.dtype, codes: torch.dtype, inputs: Any, before: str) -> None:
    """Codes times scales are what they round, to half a step of it; the sum is left for who reads it."""
    skip_compiled(device)
    numbers = torch.Generator().manual_seed(3)
    size, tokens = 384, 5
    x, residual = (
        torch.randn(tokens, 2 * size + 8, generator=numbers)[:, : 2 * size].to(device, dtype) for _ in range(2)
    )
    if before != "gate":
        x, residual = x[:, :size], residual[:, :size]
    norm = RmsNorm((1 + torch.randn(size, generator=numbers) / 4).to(device), 1e-5)
    stream = (x + residual) if before == "sum" else x
    expected = {
        "nothing": lambda: stream, "norm": lambda: PLAIN.rms_norm(stream, *norm),
        "sum": lambda: PLAIN.rms_norm(stream, *norm), "gate": lambda: PLAIN.gated(stream, "silu"),
    }[before]().float()  # fmt: skip
    most = 127 if codes == torch.int8 else 448
    known = expected.abs().max() / most if inputs == "tensor" else None
    kept = residual.clone()
    got, scale_GT = rounding.rounded(
        x, codes, inputs, known, norm if before in ("norm", "sum") else None, kept if before == "sum" else None,
        "silu" if before == "gate" else None,
    )  # fmt: skip
    assert got.dtype == codes
    assert torch.equal(kept, stream if before == "sum" else residual)
    scale = known if scale_GT is None else scale_GT.T.repeat_interleave(size // len(scale_GT), 1)
    largest = expected.view(tokens, -1, 128 if inputs == "block" else size).abs().amax(2)
    if scale_GT is not None:
        torch.testing.assert_close(scale_GT.T * most, largest, atol=2e-2, rtol=2e-2)
    step = 0.5 / 127 if codes == torch.int8 else 1 / 16
    bound = expected.abs() * step + 2 * expected.abs().max() * (step if codes == torch.int8 else 2e-3)
    assert ((got.float() * scale - expected).abs() <= bound).all()
