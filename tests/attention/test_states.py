"""What states become: token by token, and in blocks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.attention.base import Batch, RowLimits
from sapwood.attention.states import States
from sapwood.base.kv import KVGroup, State
from sapwood.kernels import recurrent
from tests.interpreter import interpreter

__all__ = ["interpreter"]

HEADS, GROUPS, KEY, VALUE = 4, 2, 12, 20


def scanned(tokens: int, *, beta: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys, values, decays and betas."""
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    q_TGK, k_TGK = draw(tokens, GROUPS, KEY), torch.nn.functional.normalize(draw(tokens, GROUPS, KEY), dim=-1)
    decay_TH, beta_TH = -draw(tokens, HEADS).abs() * 0.3, draw(tokens, HEADS).sigmoid()
    return q_TGK, k_TGK, draw(tokens, HEADS, VALUE), decay_TH, beta_TH if beta else None


@pytest.mark.parametrize("beta", [False, True])
def test_blocks_are_what_single_tokens_come_to(beta: bool) -> None:
    q_TGK, k_TGK, v_THV, decay_TH, beta_TH = scanned(150, beta=beta)
    q_NHK, k_NHK = q_TGK.repeat_interleave(2, dim=1), k_TGK.repeat_interleave(2, dim=1)
    state_HKV = torch.randn(HEADS, KEY, VALUE, generator=torch.Generator().manual_seed(0))
    found_NHV, left_HKV = recurrent.scan(q_NHK, k_NHK, v_THV, decay_TH, beta_TH, state_HKV)
    for t in range(len(q_NHK)):
        one = slice(t, t + 1)
        betas = None if beta_TH is None else beta_TH[one]
        y_NHV, states = recurrent.advance(q_NHK[one], k_NHK[one], v_THV[one], decay_TH[one], betas, state_HKV[None])
        state_HKV = states[0]
        torch.testing.assert_close(found_NHV[t], y_NHV[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left_HKV, state_HKV, atol=1e-4, rtol=1e-4)


# -- kernels -----------------------------------------------------------------------------------------------------------

PAGE, SLOTS = 8, 4


def batch(rows: list[tuple[int, int, int]], table_SP: Tensor, device: str, *, several: bool) -> Batch:
    """Of rows (slot, start, count), and one more of padding with two tokens; `several` if all tokens of short rows yield another."""
    slots, starts, counts = (list(column) for column in zip(*rows, (SLOTS, 0, 0), strict=True))
    offsets = [0, *itertools.accumulate(counts)]

    def put(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    heads = [count if count < 4 else 1 for count in counts]
    return Batch(
        ids_T=torch.zeros(offsets[-1] + 2, dtype=torch.int64, device=device),
        positions_T=torch.zeros(offsets[-1] + 2, dtype=torch.int64, device=device),
        slots_R=put(*slots), starts_R=put(*starts), counts_R=put(*counts), offsets_R1=put(*offsets),
        tables_GSP=[table_SP.to(device)], cells_GT=[], limits=RowLimits(0, len(rows)), heads_R=put(*heads) if several else None,
    )  # fmt: skip


SHAPES = {
    "shared keys": (State(((40, 3), (4, 12, 20))), (2, 12, 4, 20), False),
    "a correction": (State(((40, 2), (4, 12, 20))), (2, 12, 4, 20), True),
    "fading key by key": (State(((20, 3), (70, 12, 1))), (1, 12, 70, 1), False),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("cells", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_leave_what_the_reference_leaves(shape: str, cells: int, device: str, interpreter: None) -> None:
    """Rows that begin, go on, and have several tokens to which they may go back, among others."""
    pytest.importorskip("triton")
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    from sapwood.attention.triton_states import TritonStates

    kind, (groups, key, heads, size), corrected = SHAPES[shape]
    group, random = KVGroup(kind, 1, PAGE, rewind=cells - 1), torch.Generator().manual_seed(cells)
    backends: list[Any] = [
        States(group, 0, torch.device("cpu"), torch.float32),
        TritonStates(group, 0, torch.device(device), torch.float32),
    ]
    for one in backends:
        one.allocate(20)
    table_SP = (1 + torch.randperm(16, generator=random)).view(SLOTS, 4).to(torch.int32)
    table_SP = torch.cat([table_SP, torch.zeros(1, 4, dtype=torch.int32)])
    short = 3 if cells > 1 else 1
    steps = [
        [(0, 0, 9), (2, 0, 2)],
        [(1, 0, 1), (0, 9, short), (2, 2, 7)],
        [(0, 9 + short, 1), (1, 1, short), (2, 9, 1)],
    ]
    weight_CW, bias_C = torch.randn(kind.shapes[0][0], kind.shapes[0][1] + 1, generator=random), torch.randn(40)
    for rows in steps:
        tokens = 2 + sum(count for *_, count in rows)

        def draw(*sizes: int, tokens: int = tokens) -> Tensor:
            return torch.randn(tokens, *sizes, generator=random)

        x_TC, k_TGK = draw(kind.shapes[0][0]), torch.nn.functional.normalize(draw(groups, key), dim=-1)
        decay = -draw(heads, *([key] if shape.startswith("fading") else [])).abs() * 0.3
        given = [draw(groups, key), k_TGK, draw(heads, size), decay, draw(heads).sigmoid() if corrected else None]
        found = []
        for one, place in zip(backends, ("cpu", device), strict=True):
            one.plan(batch(rows, table_SP, place, several=cells > 1))
            mixed = one.conv(0, 0, x_TC.to(place), weight_CW.to(place), bias_C[: kind.shapes[0][0]].to(place))
            scanned = one.scan(0, 1, *(None if some is None else some.to(place) for some in given))
            found.append([mixed[:-2].cpu(), scanned[:-2].cpu(), *(pool[:, 1:].cpu() for pool in one.pools())])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)
    assert all(pool.abs().sum() > 0 for pool in backends[1].pools())
