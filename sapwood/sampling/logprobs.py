"""Log probabilities of raw logits, for those who ask.

Suffix legend: N rows, V vocabulary, K alternatives, J tokens that are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.base.plan import TokenLogprobs
from sapwood.device import abilities_of
from sapwood.sampling.rows import likeliest


@dataclass(frozen=True, eq=False)
class Logprobs:
    """Of N tokens: their log probability (float32), rank (int64, 1 is likeliest), K alternatives, best first, and those of
    J tokens that were named."""

    chosen_N: Tensor
    rank_N: Tensor
    top_ids_NK: Tensor
    top_NK: Tensor
    named_NJ: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.chosen_N, self.rank_N, self.top_ids_NK, self.top_NK, self.named_NJ


def logprobs(logits_NV: Tensor, tokens_N: Tensor, *, num_top: int, named_NJ: Tensor | None = None) -> Logprobs:
    """Of `tokens_N` (int64) under float32 logits, of the `num_top` likeliest tokens, and of `named_NJ` (int64)."""
    if named_NJ is None:
        named_NJ = tokens_N.new_empty(len(tokens_N), 0)
    total_N1 = logits_NV.logsumexp(-1, keepdim=True)
    logit_N1 = logits_NV.gather(-1, tokens_N[:, None])
    ids_NK = _likeliest(logits_NV, num_top)
    return Logprobs(
        chosen_N=(logit_N1 - total_N1).squeeze(-1),
        rank_N=(logits_NV > logit_N1).sum(-1).add_(1),
        top_ids_NK=ids_NK,
        top_NK=logits_NV.gather(-1, ids_NK) - total_N1,
        named_NJ=logits_NV.gather(-1, named_NJ) - total_N1,
    )


def _likeliest(logits_NV: Tensor, num_top: int) -> Tensor:
    """Ids of the largest logits (int64), largest first. On CPUs those with lower ids come first among equal ones, whatever
    else is asked for; topk's choice among them depends on `num_top`, which is that of the whole batch."""
    if Ability.HOST not in abilities_of(logits_NV.device) or not 0 < num_top < logits_NV.shape[-1]:
        return logits_NV.topk(num_top).indices
    ids_NK = np.tile(np.arange(num_top), (len(logits_NV), 1))
    for logits_V, ids_K in zip(logits_NV.numpy(), ids_NK, strict=True):
        if not np.isnan(logits_V.max()):  # such a row ends in an error anyhow
            kept = likeliest(logits_V, num_top)
            ids_K[:] = kept[np.argsort(-logits_V[kept], kind="stable")]
    return torch.from_numpy(ids_NK)


def as_rows(tokens: Sequence[int], found: Logprobs, wanted: Sequence[tuple[int, int]]) -> list[TokenLogprobs]:
    """The same on the host, each row with as many alternatives and named tokens as it asked for; `found` must be in host
    memory."""
    columns = (tensor.tolist() for tensor in found.tensors())
    return [
        TokenLogprobs(token, chosen, rank, ids[:num], top[:num], named[:count])
        for token, chosen, rank, ids, top, named, (num, count) in zip(tokens, *columns, wanted, strict=True)
    ]
