"""Weights that expand latents into keys and values, for the CPU's own kernels: turned over, so that queries meet latents instead.

Suffix legend: O outputs of all heads, H heads, N numbers of a key, V of a value, R of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.quant.packed import PACKINGS, Matrix, PackedLeaf, PackedWeights, Product
from sapwood.quant.source import FLOATS, stored


def absorb(leaf: PackedLeaf, num_heads: int, plain: int) -> tuple[list[Product], list[Product]]:
    """Of [O, R], per head N = `plain` rows of keys and V of values: products [R, N] and [V, R] of each head, which the leaf holds
    from now on instead.

    Values stay as they are stored. Keys are multiplied from the other side, which blocks are not made for: those that are
    quantised become float16.
    """
    weights, order_R = leaf.first, leaf.order_I
    dtype = next((dtype for dtype, form in FLOATS.items() if PACKINGS[form] == weights.packing), torch.float16)
    all_OR = weights.rows(torch.arange(weights.num_outputs))
    if order_R is not None:
        all_OR = torch.empty_like(all_OR).index_copy_(1, order_R.long(), all_OR)
    each = weights.num_outputs // num_heads
    keys_HNR = all_OR.unflatten(0, (num_heads, each))[:, :plain].to(dtype)
    keys = [_packed(keys_NR.T.contiguous(), weights) for keys_NR in keys_HNR]
    values = [
        weights.copy(first, each - plain)
        if order_R is None
        else _packed(all_OR[first : first + each - plain].to(dtype), weights)
        for first in range(plain, weights.num_outputs, each)
    ]
    leaf.matrices = [Matrix(one) for one in (*keys, *values)]
    del leaf.product
    return [Product(one) for one in keys], [Product(one) for one in values]


def _packed(rows: Tensor, like: PackedWeights) -> PackedWeights:
    made = PackedWeights(like.machine, PACKINGS[FLOATS[rows.dtype]], *rows.shape)
    made.put(stored(rows.contiguous()), 0, len(rows))
    return made
