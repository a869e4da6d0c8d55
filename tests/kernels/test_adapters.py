"""What adapters add, in two launches for all of them, against the plain twin."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

from typing import Any

import pytest
import torch

from sapwood.kernels import adapters as plain
from sapwood.kernels.adapters import Lanes, Matrices, Segment, Sorted

fused: Any = pytest.importorskip("sapwood.kernels.triton.adapters")

HERE = pytest.mark.parametrize(
    ("device", "dtype", "bound"),
    [
        pytest.param("cpu", torch.float32, 1e-5, id="float32"),  # the interpreter has no product of bfloat16
        pytest.param("cuda", torch.bfloat16, 2e-2, marks=pytest.mark.gpu, id="cuda-bfloat16"),
        pytest.param("cuda", torch.float16, 4e-3, marks=pytest.mark.gpu, id="cuda-float16"),
    ],
)


def random_matrices(
    ranks: list[int], room: int, inp: int, bounds: tuple[tuple[int, int], ...], scaled: list[bool], like: torch.Tensor
) -> Matrices:
    made = Matrices.empty(len(ranks), room, inp, bounds, like.device, like.dtype)
    for slot, rank in enumerate(ranks):
        made.note(slot, rank, scaled=scaled[slot])
        made.a_SGRI[slot, :, :rank].normal_(std=inp**-0.5)
        made.b_SOR[slot, :, :rank].normal_(std=max(rank, 1) ** -0.5)
        if scaled[slot]:
            made.factors_SO[slot].uniform_(-0.5, 0.5)
    made.offset_O.normal_()
    return made


def lanes(has: list[int], num_slots: int, device: str) -> tuple[Lanes, Lanes]:
    """The same tokens for the host and for a device."""
    has_T = torch.tensor(has)
    segments = [Segment(slot, (has_T == slot).nonzero()[:, 0].to(device)) for slot in range(num_slots)]
    last_T = torch.where(has_T < 0, num_slots, has_T)
    ordered_T, order_T = last_T.sort(stable=True)
    slots_S = torch.arange(num_slots)
    ends = [torch.searchsorted(ordered_T, slots_S, right=right).int().to(device) for right in (False, True)]
    return Lanes(True, segments), Lanes(True, sorted=Sorted(order_T.int().to(device), *ends))


CASES: dict[str, dict[str, Any]] = {
    "one group": {"inp": 40, "bounds": ((0, 24),)},
    "three groups": {"inp": 72, "bounds": ((0, 40), (40, 56), (56, 200))},
    "many parts": {"inp": 1100, "bounds": ((0, 130), (130, 140))},
}


@HERE
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_plain_one_s(device: str, dtype: torch.dtype, bound: float, case: str) -> None:
    torch.manual_seed(0)
    inp, bounds = CASES[case]["inp"], CASES[case]["bounds"]
    has = [2, -1, 0, 0, 2, 4, -1, 1, *[3] * 17, 2]  # 4 has nothing for this Linear, 3 more tokens than a tile
    x_TI = torch.randn(len(has), inp).to(device, dtype)
    made = random_matrices([3, 16, 5, 20, 0], 20, inp, bounds, [False, True, False, True, False], x_TI)
    y_TO = torch.randn(len(has), bounds[-1][1]).to(device, dtype)
    found, wanted = y_TO.clone(), y_TO.clone()
    on_host, on_device = lanes(has, 5, device)
    fused.add(found, x_TI, made, on_device)
    plain.add(wanted, x_TI, made, on_host)
    without = torch.tensor([slot in (-1, 4) for slot in has])
    assert torch.equal(found[without], y_TO[without]), "tokens without adapter keep all their bits"
    assert (found - wanted).abs().max() < bound * float(wanted.abs().max())
    assert (wanted - y_TO).abs().max() > 0.5


@HERE
def test_tokens_of_more_than_a_small_tile_and_strides(device: str, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(1)
    has = [slot % 3 - 1 for slot in range(300)]
    x_TI = torch.randn(len(has), 64).to(device, dtype)[:, 8:40]
    whole_TO = torch.randn(len(has), 64).to(device, dtype)
    made = random_matrices([4, 2], 4, 32, ((0, 16), (16, 32)), [False, False], x_TI)
    found, wanted = whole_TO.clone()[:, 16:48], whole_TO.clone()[:, 16:48]
    on_host, on_device = lanes(has, 2, device)
    fused.add(found, x_TI, made, on_device)
    plain.add(wanted, x_TI, made, on_host)
    assert (found - wanted).abs().max() < bound * float(wanted.abs().max())


@HERE
def test_32_adapters_of_many_ranks_in_one_batch(device: str, dtype: torch.dtype, bound: float) -> None:
    """Each token has its own matrices, whatever the others have: both against a product token by token."""
    torch.manual_seed(2)
    ranks, inp, bounds = [8 + 56 * slot // 31 for slot in range(32)], 48, ((0, 24), (24, 40))
    has = [*range(-1, 32), *torch.randint(-1, 32, (47,)).tolist()]
    x_TI = torch.randn(len(has), inp).to(device, dtype)
    made = random_matrices(ranks, 64, inp, bounds, [False] * 32, x_TI)
    y_TO = torch.randn(len(has), bounds[-1][1]).to(device, dtype)
    found, twin, wanted = y_TO.clone(), y_TO.clone(), y_TO.double()
    on_host, on_device = lanes(has, 32, device)
    fused.add(found, x_TI, made, on_device)
    plain.add(twin, x_TI, made, on_host)
    for token, slot in enumerate(has):
        for group, (first, behind) in enumerate(bounds):
            if slot >= 0:
                inner_R = made.a_SGRI[slot, group].double() @ x_TI[token].double()
                wanted[token, first:behind] += made.b_SOR[slot, first:behind].double() @ inner_R
    for one in (found, twin):
        assert (one - wanted).abs().max() < bound * float(wanted.abs().max())
    assert (wanted - y_TO).abs().max() > 0.5
