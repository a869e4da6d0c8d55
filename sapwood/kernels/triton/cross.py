"""Attention of a step's tokens to what an encoder has left, each to the entry of its slot: a program for each token and head.

Suffix legend: T tokens, E entries, H heads, L positions of an entry, D head size.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.triton.jit import jit

_POSITIONS = 64
"""Of an entry that a program reads at once."""


@jit
def _cross(
    out, queries, keys, values, entries, lengths,
    query_token, query_head, entry_stride, head_stride, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0), tl.program_id(1)
    entry = tl.load(entries + token).to(tl.int64)
    length = tl.load(lengths + entry)
    dims = tl.arange(0, PAD)
    inside = dims < DIM
    query = tl.load(queries + token * query_token + head * query_head + dims, mask=inside, other=0.0).to(tl.float32)
    start = entry * entry_stride + head * head_stride
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    summed = tl.zeros((PAD,), tl.float32)
    for first in range(0, length, BLOCK):
        places = first + tl.arange(0, BLOCK)
        there = (places < length)[:, None] & inside[None, :]
        cells = start + places[:, None] * DIM + dims[None, :]
        key = tl.load(keys + cells, mask=there, other=0.0).to(tl.float32)
        scores = tl.sum(key * query[None, :], axis=1) * scale
        scores = tl.where(places < length, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=0))
        weights, kept = tl.exp(scores - higher), tl.exp(most - higher)
        value = tl.load(values + cells, mask=there, other=0.0).to(tl.float32)
        summed = summed * kept + tl.sum(value * weights[:, None], axis=0)
        total = total * kept + tl.sum(weights, axis=0)
        most = higher
    tl.store(out + (token * HEADS + head) * DIM + dims, summed / total, mask=inside)


def cross(q_THD: Tensor, keys: Tensor, values: Tensor, entries_T: Tensor, lengths_E: Tensor, scale: float) -> Tensor:
    """out_THD in the queries' dtype, summed in float32: each token sees the first `lengths_E` positions of its entry of `keys` and
    `values`, contiguous [E, H, L, D]. `entries_T` and `lengths_E` are int32; no length is 0."""
    tokens, heads, dim = q_THD.shape
    out_THD = torch.empty((tokens, heads, dim), dtype=q_THD.dtype, device=q_THD.device)
    _cross[(tokens, heads)](
        out_THD, q_THD, keys, values, entries_T, lengths_E,
        q_THD.stride(0), q_THD.stride(1), keys.stride(0), keys.stride(1), scale,
        HEADS=heads, DIM=dim, PAD=triton.next_power_of_2(dim), BLOCK=_POSITIONS,
    )  # fmt: skip
    return out_THD
