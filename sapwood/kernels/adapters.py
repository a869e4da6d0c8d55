"""Products of a step's tokens with the matrices of their adapters, in plain PyTorch: what runs on CPUs, and the twin of the fused ones.

Low-rank adaptation (Hu et al., 2021): y += B A x. A step's tokens may have many adapters, and most have none; who has which is found
once a step (`Lanes`), and every Linear of the model then goes by that.

Suffix legend: T tokens, I inputs, O outputs, S adapter slots, G groups of outputs with an A of their own, R most ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matrices:
    """Those of one Linear, of all slots. What a slot has less of than R ranks is 0.

    `factors_SO` (float32) are what the base's product is multiplied by in excess of 1, where the outputs' lengths are an adapter's own
    (DoRA, Liu et al., 2024): y += factors * (y - offset) + B A x; `offset_O` (float32) is what of y is no product. `bounds` are the outputs
    [first, behind) of each group. `ranks`, on the host, is how many ranks a slot has, 0 where it has nothing for this Linear, and `scaled` whether it has factors; the device has both, and the bounds, in int32.
    """

    a_SGRI: Tensor
    b_SOR: Tensor
    factors_SO: Tensor
    offset_O: Tensor
    bounds: tuple[tuple[int, int], ...]
    bounds_G1: Tensor
    ranks: list[int]
    scaled: list[bool]
    ranks_S: Tensor
    scaled_S: Tensor

    @classmethod
    def empty(
        cls,
        num_slots: int,
        rank: int,
        inp: int,
        bounds: tuple[tuple[int, int], ...],
        device: torch.device,
        dtype: torch.dtype,
        *,
        outputs_last: bool = False,
    ) -> Matrices:
        """Of slots that have nothing. `outputs_last`: in memory a rank's outputs of B lie side by side, else an output's ranks."""
        out = bounds[-1][1]
        b_SOR = torch.zeros(
            (num_slots, rank, out) if outputs_last else (num_slots, out, rank), device=device, dtype=dtype
        )
        return cls(
            torch.zeros(num_slots, len(bounds), rank, inp, device=device, dtype=dtype),
            b_SOR.transpose(1, 2) if outputs_last else b_SOR,
            torch.zeros(num_slots, out, device=device),
            torch.zeros(out, device=device),
            bounds,
            torch.tensor([0, *(behind for _, behind in bounds)], device=device, dtype=torch.int32),
            [0] * num_slots,
            [False] * num_slots,
            torch.zeros(num_slots, device=device, dtype=torch.int32),
            torch.zeros(num_slots, device=device, dtype=torch.int32),
        )

    def note(self, slot: int, rank: int, *, scaled: bool) -> None:
        """What a slot has from now on."""
        self.ranks[slot], self.scaled[slot] = rank, scaled
        self.ranks_S[slot], self.scaled_S[slot] = rank, int(scaled)


class Segment(NamedTuple):
    """The tokens of a step that have the adapter in `slot`: a run of them, or their places in order (int64)."""

    slot: int
    tokens: slice | Tensor


class Sorted(NamedTuple):
    """A step's tokens in the order of their slots, those without adapter last, for kernels of static size: `order_T` (int32), and
    the runs of each slot [starts_S, ends_S) in it (int32)."""

    order_T: Tensor
    starts_S: Tensor
    ends_S: Tensor


@dataclass(eq=False)
class Lanes:
    """Which tokens of a step have which adapter, for all Linears of a model. Written once a step.

    `open`: some have one; else nobody asks for the rest. On the host tokens are in `segments`, and `of_tokens` has the slot of each, -1 for
    none (int32); elsewhere they are `sorted`.
    """

    open: bool = False
    segments: Sequence[Segment] = ()
    of_tokens: NDArray[np.int32] | None = None
    sorted: Sorted | None = None


def add(y_TO: Tensor, x_TI: Tensor, matrices: Matrices, lanes: Lanes) -> None:
    """Add to y, a Linear's product of x, what adapters change in it.

    Each token is multiplied with its own adapter's matrices only. Sums are in y's dtype, as PyTorch's products are.
    """
    for slot, tokens in lanes.segments:
        if not (rank := matrices.ranks[slot]):
            continue
        some_TI, some_TO = x_TI[tokens], y_TO[tokens]  # views of a run, copies of anything else
        if matrices.scaled[slot]:
            some_TO += ((some_TO - matrices.offset_O) * matrices.factors_SO[slot]).to(y_TO.dtype)
        for group, (first, behind) in enumerate(matrices.bounds):
            inner_TR = some_TI @ matrices.a_SGRI[slot, group, :rank].T
            some_TO[:, first:behind] += inner_TR @ matrices.b_SOR[slot, first:behind, :rank].T
        if isinstance(tokens, Tensor):
            y_TO[tokens] = some_TO
