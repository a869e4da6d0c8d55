"""Keys and values in int8 and float8 with a scale for each position and head, against dense attention and each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from sapwood.attention.reference import Reference
from sapwood.attention.scaled import MOST, rounded
from sapwood.base.kv import KVGroup
from sapwood.runner.parts import copy_pages
from tests import kv

DTYPES = [torch.int8, torch.float8_e4m3fn]
TOLERANCE = {torch.int8: 0.05, torch.float8_e4m3fn: 0.15}
"""Of outputs of order 1: a key or value is rounded by 1/254 of the largest of its head, or by up to 1/16 of itself."""


def group(**changes: Any) -> KVGroup:
    facts = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "window": None, "page_size": 8}
    return kv.group(**(facts | changes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding(dtype: torch.dtype) -> None:
    x_TKD = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1e3])[:, None]
    x_TKD[3, 1] = 0
    codes_TKD, scale_TK = rounded(x_TKD, dtype)
    found = codes_TKD.float() * scale_TK[..., None]
    assert (
        (found - x_TKD).abs() <= x_TKD.abs().amax(-1, keepdim=True) * (0.5 / 127 if dtype == torch.int8 else 1 / 16)
    ).all()
    assert codes_TKD.float().abs().amax() == MOST[dtype]
    assert not found[3, 1].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 12])
def test_reference(world: Any, dtype: torch.dtype, window: int | None) -> None:
    made = world(group(num_layers=2, window=window), (40, 21))
    backend = made.start(partial(Reference, scaled=True), dtype)
    made.step(backend, [(0, 30), (1, 20)])
    made.step(backend, [(0, 9), (1, 1)])
    made.check_from({0: 0, 1: 0}, tolerance=TOLERANCE[dtype])


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled on this machine")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("computed", "window"), [(torch.float16, None), (torch.float32, None), (torch.float16, 12)])
def test_kernels(world: Any, run: Any, dtype: torch.dtype, computed: torch.dtype, window: int | None) -> None:
    """Interpreted: what is stored is the reference's, and is read again by rows, spans and runs."""
    pytest.importorskip("triton")
    from sapwood.attention.triton import Triton

    made = world(group(window=window), (40, 35, 21), dtype=computed)
    runs = [] if window else [run(0, 16, (0, 1))]
    for one in runs:
        made.share(one)
    backend: Any = made.start(partial(Triton, scaled=True), dtype)
    reference = made.start(partial(Reference, scaled=True), dtype)
    made.step(reference, [(0, 38), (1, 33), (2, 10)])
    for pages_LPKC, pages_LPCK in zip(backend.pools(), reference.pools(), strict=True):
        pages_LPKC.copy_(pages_LPCK.transpose(2, 3))
    made.step(backend, [(0, 1), (1, 1), (2, 9)], runs=runs)
    made.step(backend, [(0, 1), (1, 1)], runs=runs)
    made.check_from({0: 0, 1: 0, 2: 0}, tolerance=TOLERANCE[dtype])
    written = [pool.float() for pool in backend.pools()]
    made.fed[:] = [38, 33, 10]
    made.step(reference, [(0, 1), (1, 1), (2, 9)])
    made.step(reference, [(0, 1), (1, 1)])
    for ours, pages_LPCK in zip(written, reference.pools(), strict=True):
        theirs = pages_LPCK.transpose(2, 3).float()
        # Halves of a step may fall to either side; the interpreter does not round to float8 well.
        off = 1.001 if dtype == torch.int8 else 40
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=off if ours.dim() == 5 else 0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_are_copied_with_their_pages(dtype: torch.dtype) -> None:
    backend = Reference(group(), 0, torch.device("cpu"), dtype, scaled=True)
    backend.allocate(4)
    for pool in backend.pools():
        pool.view(torch.uint8).random_()
    copy_pages(backend, torch.tensor([1]), torch.tensor([3]))
    for pool in backend.pools():
        pages = pool.view(torch.uint8)
        assert torch.equal(pages[:, 3], pages[:, 1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_compiled(world: Any, run: Any, dtype: torch.dtype, head_dim: int) -> None:
    from sapwood.attention.triton import Triton

    shape = group(num_layers=2, num_heads=8, head_dim=head_dim, page_size=16)
    made = world(shape, (700, 400, 130), device=torch.device("cuda"), dtype=torch.bfloat16, scale=head_dim**-0.5)
    runs = [run(0, 256, (0, 1))]
    made.share(runs[0])
    backend: Any = made.start(partial(Triton, scaled=True), dtype)
    made.step(backend, [(0, 600), (1, 390), (2, 100)])
    made.step(backend, [(0, 1), (1, 1), (2, 3)], runs=runs)
    made.step(backend, [(0, 1), (1, 1), (2, 1)], runs=runs)
    made.check_from({0: 0, 1: 0, 2: 0}, tolerance=TOLERANCE[dtype])
