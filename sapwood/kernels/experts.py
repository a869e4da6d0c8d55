"""The products of chosen experts in plain PyTorch: what runs on CPUs, and the twin that fused ones are tested against.

Suffix legend: T tokens, X experts, K experts of a token, I inputs and O outputs of a product, E hidden size, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.base.selection import Selection
from sapwood.kernels.planes import StackedPlanes


@dataclass(frozen=True, eq=False)
class Several:
    """Experts' weights of any kind: `products` are those of each, with their biases; `shape` is that of all, [X, O, I]."""

    shape: tuple[int, int, int]
    products: Sequence[Callable[[Tensor], Tensor]]


Stacked = Tensor | StackedPlanes | Several
"""Experts' weights: plain ones, one behind the other; quantised ones likewise; or each by itself, where a host may choose."""


@dataclass(frozen=True, eq=False)
class Routed:
    """Experts: their weights, and how they are chosen; biases are in the dtype of plain weights, offsets of scores float32. With
    `weighs_input` an expert's weight is of what it takes, and not of what it yields. Weights may be of some of the experts only, those
    from `first` on; others yield nothing here. To `counts_X` (int64) are added the tokens that choose each, where a host chooses."""

    selection: Selection
    activation: str
    gate_up_XOI: Stacked
    down_XOI: Stacked
    gate_up_bias_XO: Tensor | None = None
    down_bias_XO: Tensor | None = None
    offsets_X: Tensor | None = None
    weighs_input: bool = False
    first: int = 0
    counts_X: Tensor | None = None


def select(logits_TX: Tensor, how: Selection, offsets_X: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(experts_TK, weights_TK): int64 numbers, best first, and float32 weights."""
    logits_TX = logits_TX.float()
    if how.score == "sparsemix":
        return _sparsemix(logits_TX, how)
    scores_TX = logits_TX.softmax(-1) if how.score == "softmax" else logits_TX.sigmoid()
    ranks_TX = scores_TX if offsets_X is None else scores_TX + offsets_X
    if how.groups > 1:
        ranks_TX = _within_groups(ranks_TX, how)
    experts_TK = ranks_TX.sort(dim=-1, descending=True, stable=True).indices[:, : how.top]
    weights_TK = scores_TX.gather(1, experts_TK)
    if how.renormalised:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return experts_TK, weights_TK * how.scale


def _within_groups(ranks_TX: Tensor, how: Selection) -> Tensor:
    """With minus infinity outside the best groups."""
    ranks_TGX = ranks_TX.unflatten(-1, (how.groups, -1))
    best_TG = ranks_TGX.topk(how.group_best, dim=-1).values.sum(-1)
    chosen_TG = best_TG.sort(dim=-1, descending=True, stable=True).indices[:, : how.top_groups]
    outside_TG = torch.ones_like(best_TG, dtype=torch.bool).scatter(1, chosen_TG, value=False)
    return ranks_TGX.masked_fill(outside_TG[..., None], -torch.inf).flatten(1)


def _sparsemix(logits_TX: Tensor, how: Selection) -> tuple[Tensor, Tensor]:
    left_TX, experts, weights = logits_TX, [], []
    for _ in range(how.top):
        most_T1 = left_TX.max(-1, keepdim=True).values
        best_T1 = (left_TX == most_T1).int().argmax(-1, keepdim=True)
        far_TX = (most_T1 - logits_TX) / torch.maximum(logits_TX.abs(), most_T1) > how.slack
        experts.append(best_T1)
        weights.append(left_TX.masked_fill(far_TX, -torch.inf).softmax(-1).gather(1, best_T1))
        left_TX = left_TX.scatter(1, best_T1, -torch.inf)
    return torch.cat(experts, 1), torch.cat(weights, 1) * how.scale


def compute(x_TE: Tensor, logits_TX: Tensor, how: Routed, gated: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """y_TE: the weighted sum of what each row's experts yield for it, added up in float32, best expert first."""
    experts_TK, weights_TK = select(logits_TX, how.selection, how.offsets_X)
    if how.counts_X is not None:
        how.counts_X.add_(torch.bincount(experts_TK.flatten(), minlength=len(how.counts_X)))
    parts_TKE = torch.zeros((*experts_TK.shape, how.down_XOI.shape[1]), dtype=torch.float32, device=x_TE.device)
    local_TK, count = experts_TK - how.first, how.down_XOI.shape[0]
    for expert in local_TK[(local_TK >= 0) & (local_TK < count)].unique().tolist():
        t, k = (local_TK == expert).nonzero(as_tuple=True)
        rows, weight = x_TE[t], weights_TK[t, k, None]
        if how.weighs_input:
            rows = (rows * weight).to(x_TE.dtype)
        inner = gated(_product(rows, how.gate_up_XOI, how.gate_up_bias_XO, expert), how.activation)
        part = _product(inner, how.down_XOI, how.down_bias_XO, expert).float()
        parts_TKE[t, k] = part if how.weighs_input else part * weight
    return parts_TKE.sum(1).to(x_TE.dtype)


def _product(x_TI: Tensor, weights: Stacked, bias_XO: Tensor | None, expert: int) -> Tensor:
    """y_TO of one expert."""
    if isinstance(weights, Several):
        return weights.products[expert](x_TI)
    assert isinstance(weights, Tensor), "planes are read on devices"
    return F.linear(x_TI, weights[expert], None if bias_XO is None else bias_XO[expert])
