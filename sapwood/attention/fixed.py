"""What encoders leave for cross-attention: a pool with an entry for each input, and attention of a step's tokens to them.

Nothing hides positions from anybody, so tokens that look at one entry are rows of one product, whichever requests they are of.

Suffix legend: T tokens of the step, R rows, S slots, E entries, A changes, N tokens that look at one entry, L positions of an entry,
H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.attention.base import Batch, rows_of
from sapwood.base.abilities import Ability
from sapwood.base.kv import Fixed
from sapwood.base.plan import Ints
from sapwood.base.ragged import spread
from sapwood.device import abilities_of


@dataclass(eq=False)
class Watch:
    """Tokens of a step of which somebody wants to know how they look at the first `positions` of their entry: by layer, with which heads.
    `found` are their weights, float32 [head, N, L] of each layer in turn."""

    tokens: slice
    entry: int
    heads: Mapping[int, Sequence[int]]
    positions: int
    found: list[Tensor] = field(default_factory=list)


class Entries:
    """`entries` inputs of at most `longest` positions, and which of them each of `num_slots` slots looks at. Entry 0 is nobody's: one
    position of zeros, which padding may look at."""

    def __init__(self, *, entries: int, longest: int, num_slots: int, device: torch.device) -> None:
        self.longest = longest
        self.lengths_E = torch.ones(entries + 1, dtype=torch.int32, device=device)
        self.entries_S = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        self._lengths: Ints = np.ones(entries + 1, np.int32)
        self.watched: Sequence[Watch] = ()

    def turn(self, slots_A: Ints, entries_A: Ints) -> None:
        """From the next step on these slots look at these entries."""
        if len(slots_A):
            places = torch.from_numpy(slots_A.astype(np.int64)).to(self.entries_S.device)
            self.entries_S[places] = torch.from_numpy(entries_A.astype(np.int32)).to(self.entries_S.device)

    def measure(self, entry: int, length: int) -> None:
        """An entry has so many positions from now on."""
        self._lengths[entry] = length
        self.lengths_E[entry] = length

    def plan(self, batch: Batch) -> None:
        """Once a step: who looks where."""
        raise NotImplementedError

    def _weights(self, keys_HLD: Tensor, watch: Watch, heads: Sequence[int], q_THD: Tensor, scale: float) -> Tensor:
        """Of some heads, over all positions of the entry, of which the first are told."""
        length = int(self._lengths[watch.entry])
        q_HND = q_THD[watch.tokens, list(heads)].transpose(0, 1).float()
        scores_HNL = q_HND @ keys_HLD[list(heads), :length].float().transpose(1, 2) * scale
        return scores_HNL.softmax(-1)[:, :, : watch.positions]


class FixedPool(Entries):
    """With keys and values [layer, entry, head, position, D]."""

    def __init__(
        self,
        kind: Fixed,
        *,
        num_layers: int,
        entries: int,
        longest: int,
        num_slots: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(entries=entries, longest=longest, num_slots=num_slots, device=device)
        shape = (num_layers, entries + 1, kind.num_heads, longest, kind.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self._on_host = Ability.HOST in abilities_of(device)
        self._looks: list[tuple[int, Tensor | slice]] = []
        self.of_tokens: Tensor | None = None

    def write(self, layer: int, entry: int, keys_LHD: Tensor, values_LHD: Tensor) -> None:
        """What a layer makes of an input."""
        length = len(keys_LHD)
        self.keys[layer, entry, :, :length] = keys_LHD.transpose(0, 1)
        self.values[layer, entry, :, :length] = values_LHD.transpose(0, 1)

    def plan(self, batch: Batch) -> None:
        if self._on_host:
            self._looks = self._sort(batch)
        else:
            self.plan_on_device(batch)

    def plan_on_device(self, batch: Batch) -> None:
        """The same where the host does not know; may be captured."""
        # Tokens of the padding belong to no row; they are given the last one's entry, and what they yield is nobody's.
        rows_T = rows_of(batch.offsets_R1, len(batch.positions_T)).clamp_(max=len(batch.slots_R) - 1)
        self.of_tokens = self.entries_S[batch.slots_R[rows_T].long()]

    def _sort(self, batch: Batch) -> list[tuple[int, Tensor | slice]]:
        """The step's tokens by their entries."""
        counts = batch.counts_R.numpy()
        entries = self.entries_S.numpy()[batch.slots_R.numpy()]
        live = np.unique(entries[counts > 0])
        if len(live) == 1:
            return [(int(live[0]), slice(0, int(counts.sum())))]
        rows_T, _ = spread(counts)
        of_tokens = entries[rows_T]
        return [(int(entry), torch.from_numpy(np.flatnonzero(of_tokens == entry))) for entry in live]

    def run(self, layer: int, q_THD: Tensor, scale: float) -> Tensor:
        """out_THD of the queries of a step's tokens, each of which sees all of its slot's entry."""
        keys, values = self.keys[layer], self.values[layer]
        for watch in self.watched:
            if (heads := watch.heads.get(layer)) is not None:
                watch.found.append(self._weights(keys[watch.entry], watch, heads, q_THD, scale))
        if not self._on_host:
            from sapwood.kernels.triton.cross import cross

            assert self.of_tokens is not None, "planned before it runs"
            return cross(q_THD, keys, values, self.of_tokens, self.lengths_E, scale)
        out_THD = torch.zeros_like(q_THD)
        for entry, tokens in self._looks:
            length = int(self._lengths[entry])
            q_1HND = q_THD[tokens].transpose(0, 1)[None]
            k_1HLD, v_1HLD = (x[entry, :, :length][None] for x in (keys, values))
            out_1HND = F.scaled_dot_product_attention(q_1HND, k_1HLD, v_1HLD, scale=scale)
            out_THD[tokens] = out_1HND[0].transpose(0, 1)
        return out_THD
