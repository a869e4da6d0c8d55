"""What computes drafts: a whole model, or a head that goes on from what the other model made of the tokens before.

A head wants, beside each token, the feature of the position before it. Within a span that is the one before in the step; of
the first, it was computed by an earlier step. So the features of a slot's last positions are kept, in a ring:

    ring[slot, p % W]    of position p: what the other model made of it, or, running ahead, the head itself

A step overwrites what was run ahead. Of a request that begins behind a cached prefix the first feature is not there: it reads
another's in its place, which makes drafts no better and answers no different.

Suffix legend: T tokens, R rows, N heads, E hidden size, S slots, W positions of the ring, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sapwood.attention.base import Batch, rows_of
from sapwood.nn.draft_head import DraftHead
from sapwood.nn.model import Model
from sapwood.nn.native import NativeModel


class Seer(Protocol):
    """Computes a batch whose backends have planned it; may be captured. `taps` are as in `step.Follower`; `trails`: tokens may be taken
    in later than by the other model."""

    @property
    def taps(self) -> Sequence[int]: ...

    @property
    def trails(self) -> bool: ...

    def follow(self, batch: Batch, hidden_TD: Tensor, taken: Sequence[Tensor]) -> None:
        """The tokens of a step that the other model has computed."""
        ...

    def advance(self, batch: Batch) -> Tensor:
        """A token of each row, running ahead: what `logits` are made of, by token."""
        ...

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """logits_NV, as products yield them."""
        ...


class Whole:
    """A model of its own: it needs to know nothing but tokens."""

    taps: Sequence[int] = ()
    trails = True

    def __init__(self, model: Model | NativeModel) -> None:
        self._model = model

    def follow(self, batch: Batch, hidden_TD: Tensor, taken: Sequence[Tensor]) -> None:
        self._model(batch)

    def advance(self, batch: Batch) -> Tensor:
        return self._model(batch)

    def logits(self, hidden_NE: Tensor) -> Tensor:
        return self._model.logits(hidden_NE, raw=True)


class Head:
    """A head. A step yields, and a row runs ahead, fewer than `most` tokens; `nobody` is the slot behind all."""

    trails = False  # what the other model made of a token is at hand in its step alone

    def __init__(self, model: DraftHead, *, nobody: int, most: int, dtype: torch.dtype) -> None:
        self.taps = model.decoder.taps
        self._model, self._nobody, self._width = model, nobody, most + 2
        shape = nobody + 1, self._width, model.decoder.hidden_size
        self._ring_SWE = torch.zeros(shape, dtype=dtype, device=model.device)

    def follow(self, batch: Batch, hidden_TD: Tensor, taken: Sequence[Tensor]) -> None:
        slots_T, starts_T, ends_T = self._rows(batch)
        feature_TE = self._model.features(hidden_TD, taken)
        first_T1 = (batch.positions_T == starts_T)[:, None]
        before_TE = torch.where(first_T1, self._before(slots_T, batch.positions_T), feature_TE.roll(1, 0))
        self._model(batch, before_TE)
        late_T = ends_T - batch.positions_T <= self._width
        self._keep(torch.where(late_T, slots_T, self._nobody), batch.positions_T, feature_TE)

    def advance(self, batch: Batch) -> Tensor:
        slots_T = batch.slots_R.long()  # a token of each, in the padding too
        feature_TE: Tensor = self._model(batch, self._before(slots_T, batch.positions_T))
        self._keep(slots_T, batch.positions_T, feature_TE)
        return feature_TE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        return self._model.logits(hidden_NE)

    def _before(self, slots_T: Tensor, positions_T: Tensor) -> Tensor:
        return self._ring_SWE[slots_T, (positions_T - 1) % self._width]

    def _keep(self, slots_T: Tensor, positions_T: Tensor, feature_TE: Tensor) -> None:
        # What is no number would be passed on from one request to the next.
        self._ring_SWE[slots_T, positions_T % self._width] = feature_TE.nan_to_num()

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token the slot, and where its row's span starts and ends; nobody's of the padding."""
        tokens_T = torch.arange(len(batch.ids_T), dtype=torch.int32, device=batch.ids_T.device)
        rows_T = rows_of(batch.offsets_R1, len(batch.ids_T)).clamp_(max=len(batch.slots_R) - 1)
        slots_T = torch.where(tokens_T < batch.offsets_R1[-1], batch.slots_R[rows_T], self._nobody).long()
        starts_T = batch.starts_R[rows_T]
        return slots_T, starts_T, starts_T + batch.counts_R[rows_T]


def seer(model: Model | NativeModel | DraftHead, *, nobody: int, most: int, dtype: torch.dtype) -> Seer:
    """What drafts with a model or a head; the rest is as in `Head`."""
    if isinstance(model, DraftHead):
        return Head(model, nobody=nobody, most=most, dtype=dtype)
    return Whole(model)
