"""Attention over latents, and its reference: one row at a time in float32, on any device.

Suffix legend: T tokens of the step, N tokens of one row, L positions that the row's tokens may see, H query heads, R rank of the
latents, P turned dimensions, W = R + P, F = P / 2, C cells, K size of a head's own key, V size of a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sapwood.attention.base import Backend, Batch
from sapwood.attention.rows import RowsOf
from sapwood.base.kv import KVGroup, Latent
from sapwood.kernels import RmsNorm, plain


class Turn(NamedTuple):
    """How a step's latents and queries get their positions: the latents' first part is normed, and the last part of both
    turned, dimension i with i + F, or if `interleaved` each even one with the next. Angles are float32, a row per token."""

    norm: RmsNorm
    cos_TF: Tensor
    sin_TF: Tensor
    interleaved: bool


class LatentBackend(Backend, Protocol):
    """A backend of groups that keep a `Latent`."""

    def run(self, layer: int, queries_THW: Tensor, latents_TW: Tensor, turn: Turn, scale: float) -> Tensor:
        """Norm and turn, write the latents of the group's `layer`-th layer, attend causally.

        Queries are absorbed: their first R numbers are compared with latents, the last P with what is turned. They are
        contiguous and may be overwritten, their last P by themselves turned; the latents' last axis is contiguous. Returns out_THR,
        sums of latents, in the queries' dtype. Tokens of no row come out as anything, and so do those that `expand` is for.
        """
        ...

    def expand(
        self, layer: int, q_THK: Tensor, queries_THW: Tensor, up_HXR: Tensor, values_HTV: Tensor, scale: float
    ) -> None:
        """After `run`, of whose sums `values_HTV` were made: write over those of the tokens whose latents are expanded instead.

        `q_THK` are the queries before they were absorbed, `queries_THW` what `run` has left of them; X = K + V, what `up` makes of a
        latent for a head. Most backends expand none.
        """
        ...


def latent_of(group: KVGroup) -> Latent:
    """The group's kind, for backends that serve no other."""
    assert isinstance(group.kind, Latent), "chosen by kind"
    return group.kind


def turned(x_TNP: Tensor, turn: Turn) -> Tensor:
    return plain.rope(x_TNP, turn.cos_TF, turn.sin_TF, interleaved=turn.interleaved)


class LatentReference:
    """A loop over rows with an explicit mask and softmax. Latents lie as [layer, cell, W]."""

    name = "reference-latent"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype.itemsize == 1:
            return f"it stores latents in the dtypes that are computed in, not {dtype}"
        return None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        self._group, self._device, self._dtype = group, device, dtype
        self._kind = latent_of(group)
        self._rows = RowsOf(group, index, device)

    def allocate(self, num_pages: int) -> None:
        shape = (self._group.num_layers, num_pages * self._group.page_size, self._kind.width)
        self._cells = torch.zeros(shape, dtype=self._dtype, device=self._device)

    def plan(self, batch: Batch) -> None:
        self._rows.plan(batch)

    def pools(self) -> Sequence[Tensor]:
        return [self._cells.view(len(self._cells), -1, self._group.page_size, self._kind.width)]

    def expand(self, *arguments: object) -> None:
        """None are."""

    def run(self, layer: int, queries_THW: Tensor, latents_TW: Tensor, turn: Turn, scale: float) -> Tensor:
        rank = self._kind.rank
        cells_CW = self._cells[layer]
        normed_TR = plain.rms_norm(latents_TW[:, :rank], *turn.norm)
        turned_TP = turned(latents_TW[:, None, rank:], turn)[:, 0]
        cells_CW[self._rows.cells_T] = torch.cat([normed_TR, turned_TP], dim=1).to(self._dtype)
        q_THW = torch.cat([queries_THW[..., :rank], turned(queries_THW[..., rank:], turn)], dim=-1)
        out_THR = torch.zeros_like(q_THW[..., :rank])
        for row in self._rows.rows:
            seen_LW = cells_CW[row.cells_L].float()
            scores_HNL = torch.einsum("nhw,lw->hnl", q_THW[row.first : row.last].float(), seen_LW) * scale
            weights_HNL = scores_HNL.masked_fill(~row.seen_NL, float("-inf")).softmax(dim=-1)
            out_NHR = torch.einsum("hnl,lr->nhr", weights_HNL, seen_LW[:, :rank])
            out_THR[row.first : row.last] = out_NHR.to(q_THW.dtype)
        return out_THR
