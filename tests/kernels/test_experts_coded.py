"""Experts with quantised weights, multiplied on the device, against what those stand for."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.kernels import PLAIN, RmsNorm, Routed
from sapwood.kernels.planes import StackedPlanes
from tests.kernels.quantised import FORMS, moved, random_planes
from tests.kernels.test_experts import HERE, Case, Cut, near, twin

choice: Any = pytest.importorskip("sapwood.kernels.triton.choice")
fused: Any = pytest.importorskip("sapwood.kernels.triton.experts")

COUNT, SIZE, INNER = 6, 96, 64
LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {},
    "blocks": {"group": 128, "tall": 128},
    "groups": {"group": 32},
    "offsets": {"group": 32, "offset": True},
    "ordered": {"group": 32, "ordered": True},
}
CASES = [
    *((form, "groups") for form in FORMS),
    ("fp8", "rows"),
    ("int8", "rows"),
    ("fp8", "blocks"),
    ("uint4", "offsets"),
    ("uint4", "ordered"),
]


def stacked(random: torch.Generator, form: str, layout: str, outputs: int, inputs: int) -> tuple[StackedPlanes, Tensor]:
    """Of all experts, and their values."""
    several = [random_planes(random, form, outputs, inputs, **LAYOUTS[layout]) for _ in range(COUNT)]
    return StackedPlanes.of([planes for planes, _ in several]), torch.stack([values for _, values in several])


def experts(form: str, layout: str, device: str, dtype: torch.dtype, *, biased: bool) -> tuple[Case, Routed, Routed]:
    """(inputs, quantised experts, the same in float32)"""
    case, random = Case(device, dtype, count=COUNT, size=SIZE, inner=INNER), torch.Generator().manual_seed(1)
    how = case.biased() if biased else case.how
    if biased:
        how = replace(how, activation="swiglu_clamped")
    up, up_values = stacked(random, form, layout, 2 * INNER, SIZE)
    down, down_values = stacked(random, form, layout, SIZE, INNER)
    ours = [replace(one, planes=moved(one.planes, device)) for one in (up, down)]
    wide = replace(how, gate_up_XOI=up_values.to(device), down_XOI=down_values.to(device))
    return case, replace(how, gate_up_XOI=ours[0], down_XOI=ours[1]), wide


@HERE
@pytest.mark.parametrize(("form", "layout"), CASES)
@pytest.mark.parametrize("num_tokens", [2, 20])
def test_products(form: str, layout: str, num_tokens: int, device: str, dtype: torch.dtype) -> None:
    biased = num_tokens == 20 or layout == "offsets"
    case, how, wide = experts(form, layout, device, dtype, biased=biased)
    x, logits = case.draw(num_tokens, SIZE + 8)[:, :SIZE], case.draw(num_tokens, COUNT)
    chosen, weights = choice.choose(logits, how)
    if num_tokens == 2:
        norm = RmsNorm(case.draw(SIZE).float(), 1e-5) if dtype != torch.float16 else None
        ours = fused.of_few(x, norm, chosen, weights, how, Cut(0, 16, 64, 2, 2), Cut(0, 8, 32, 2, 1))
        x = x if norm is None else PLAIN.rms_norm(x.float(), *norm)
    else:
        ours = fused.of_many(x, chosen, weights, how, Cut(16, 32, 64, 4, 2), Cut(16, 64, 32, 4, 2))
    near(ours, twin(x, chosen, weights, wide))


@HERE
def test_one_of_two_products_may_be_plain(device: str, dtype: torch.dtype) -> None:
    """As where the inputs of the second fill no groups."""
    case, how, wide = experts("uint4", "groups", device, dtype, biased=False)
    down = case.how.down_XOI
    how, wide = replace(how, down_XOI=down), replace(wide, down_XOI=down)
    for number in (1, 9):
        x, logits = case.draw(number, SIZE), case.draw(number, COUNT)
        chosen, weights = choice.choose(logits, how)
        near(fused.routed(x, None, logits, how), twin(x, chosen, weights, wide))


def test_stacks_of_scales_that_are_kept_in_other_ways() -> None:
    """Some in half precision and some not, some with offsets and some without."""
    random = torch.Generator().manual_seed(0)
    first, _ = random_planes(random, "uint4", 32, 64, group=32)
    other, _ = random_planes(random, "uint4", 32, 64, group=32, offset=True)
    assert first.scale_GS is not None
    first = first._replace(scale_GS=first.scale_GS.half())
    planes = StackedPlanes.of([first, other]).planes
    assert planes.scale_GS is not None and planes.scale_GS.dtype == torch.float32
    assert planes.offset_GS is not None and not planes.offset_GS[0].any() and planes.arrived is None
