"""Random quantised weights and what they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sapwood.kernels.planes import E2M1, MOST_TILES, Planes, pair_of

FORMS = ("fp8", "int8", "uint4", "e2m1", "table")


def random_planes(
    random: torch.Generator,
    form: Any,
    outputs: int,
    inputs: int,
    *,
    group: int = 0,
    tall: int = 1,
    offset: bool = False,
    ordered: bool = False,
) -> tuple[Planes, Tensor]:
    """Weights, and their values [O, I] in float32, about as large as makes products about 1."""
    codes, numbers, size = _codes(random, form, outputs, inputs)
    scales = (-(-inputs // group), -(-outputs // tall)) if group else (1, outputs)
    scale_GS = (0.5 + torch.rand(scales, generator=random)) / (size * inputs**0.5)
    offset_GS = torch.randn(scales, generator=random) * inputs**-0.5 if offset else None
    order_I = torch.randperm(inputs, generator=random) if ordered else None
    columns, rows = torch.arange(inputs) // (group or inputs), torch.arange(outputs) // (tall if group else 1)
    values = numbers * scale_GS[columns][:, rows].T
    if offset_GS is not None:
        values = values + offset_GS[columns][:, rows].T
    if order_I is not None:
        values = values[:, torch.argsort(order_I)]
    pair = 0 if form in ("fp8", "int8") else pair_of(inputs, group)
    planes = Planes(
        form, inputs, _paired(codes, pair) if pair else codes, pair=pair, group=group, tall=tall,
        scale_GS=scale_GS if group else None, row_O=None if group else scale_GS[0].contiguous(),
        offset_GS=offset_GS, order_I=None if order_I is None else order_I.int(),
        table=torch.linspace(-1, 1, 16) ** 3 if form == "table" else None,
        arrived=torch.zeros(MOST_TILES, dtype=torch.int32),
    )  # fmt: skip
    return planes, values


def _codes(random: torch.Generator, form: str, outputs: int, inputs: int) -> tuple[Tensor, Tensor, float]:
    """Codes, a byte each; the numbers that they stand for; how large those are."""
    if form == "fp8":
        fp8 = (torch.randn(outputs, inputs, generator=random) * 60).to(torch.float8_e4m3fn)
        fp8.view(-1)[:8] = torch.tensor([0.0, -0.0, 448, -448, 2**-9, -(2**-9), 2**-6, 0.01]).to(torch.float8_e4m3fn)
        return fp8.view(torch.uint8), fp8.float(), 60
    if form == "int8":
        int8 = torch.randint(-128, 128, (outputs, inputs), generator=random).to(torch.int8)
        return int8.view(torch.uint8), int8.float(), 74
    codes = torch.randint(0, 16, (outputs, inputs), generator=random)
    numbers, size = {
        "uint4": (codes.float() - 8, 5.0),
        "e2m1": (torch.tensor(E2M1)[codes], 3.0),
        "table": ((torch.linspace(-1, 1, 16) ** 3)[codes], 0.5),
    }[form]
    return codes.to(torch.uint8), numbers, size


def _paired(codes: Tensor, pair: int) -> Tensor:
    """As `Planes` says, one by one."""
    column = torch.arange(codes.shape[1] // 2)
    low = column // pair * (2 * pair) + column % pair
    return codes[:, low] | codes[:, low + pair] << 4


def moved(planes: Planes, device: str) -> Planes:
    return planes._replace(**{name: one.to(device) for name, one in planes.tensors.items()})
