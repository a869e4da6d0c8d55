"""Embeddings that adapters change: each token gets a sum of the rows of its own adapter's B, weighted by its column of A.

It is a Linear's B A x of tokens that are one-hot vectors x (Hu et al., 2021), so a step's tokens look columns of A up, and one product
with the B of all slots side by side follows, of weights that are 0 but for a token's own slot.

Suffix legend: T tokens, D hidden size, V vocabulary, S adapter slots, R ranks, K slots' ranks side by side,
I inputs, O outputs, G groups of outputs of a Linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sapwood.arch.parts import Embedding
from sapwood.parallel import Mesh


@dataclass(frozen=True, eq=False)
class Change:
    """What an adapter changes in one Linear, of a rank's part of it, on the host: a_GRI, and b_OR times its scale. With DoRA
    `magnitudes_O` (float32) are the lengths that the rows of W + B A are to have; NaN where they stay as they come."""

    a_GRI: Tensor
    b_OR: Tensor
    magnitudes_O: Tensor | None = None


class AdaptedRows:
    """Room for `num_slots` adapters of up to `rank` ranks of an embedding, of a rank's part of the vocabulary where the `mesh` has several."""

    def __init__(
        self, part: Embedding, *, num_slots: int, rank: int, device: torch.device, dtype: torch.dtype, mesh: Mesh
    ) -> None:
        self._a_SVR = torch.zeros(num_slots, part.vocab_size, rank, device=device, dtype=dtype)
        self._b_SRD = torch.zeros(num_slots, rank, part.hidden_size, device=device, dtype=dtype)
        self._first, self._count, self._mesh = part.first, part.vocab_size, mesh
        self._scale = torch.tensor(part.scale, dtype=dtype).item()
        self._slots_S = torch.arange(num_slots, device=device)

    def put(self, slot: int, change: Change | None) -> None:
        """Have the slot change this much, or nothing."""
        self._a_SVR[slot].zero_()
        self._b_SRD[slot].zero_()
        if change is not None:
            rank = change.a_GRI.shape[1]
            self._a_SVR[slot, :, :rank].copy_(change.a_GRI[0].T, non_blocking=True)
            self._b_SRD[slot, :rank].copy_(change.b_OR.T, non_blocking=True)

    def add(self, x_TD: Tensor, ids_T: Tensor, has_T: Tensor) -> Tensor:
        """The tokens' vectors with what adapters change in them; `has_T` is the slot of each token's adapter, -1 for none."""
        own_T = ids_T.long() - self._first
        here_TS = (has_T[:, None] == self._slots_S) & ((own_T >= 0) & (own_T < self._count))[:, None]
        looked_TR = self._a_SVR[has_T.long().clamp_min(0), own_T.clamp(0, self._count - 1)]
        weights_TSR = torch.where(here_TS[:, :, None], looked_TR[:, None], 0)
        added_TD = weights_TSR.flatten(1) @ self._b_SRD.flatten(0, 1)
        return x_TD + self._mesh.sum(added_TD) * self._scale
