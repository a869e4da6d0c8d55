"""How much memory a model needs, before any device is touched. All figures are for one rank that holds everything."""

from __future__ import annotations

import math

from sapwood.arch.parts import Decoder, Norm, walk
from sapwood.arch.shard import weight_map

NORM_ITEMSIZE = 4  # norm weights stay float32 whatever the model's dtype


def num_parameters(decoder: Decoder) -> int:
    return sum(math.prod(s.stop - s.start for s in piece.source) for piece in weight_map(decoder))


def weight_bytes(decoder: Decoder, itemsize: int) -> int:
    """Bytes of the weights at `itemsize` bytes an element."""
    norms = sum(place.leaf.size for place in walk(decoder) if isinstance(place.leaf, Norm))
    return num_parameters(decoder) * itemsize + norms * (NORM_ITEMSIZE - itemsize)


def rope_bytes(decoder: Decoder, num_positions: int) -> int:
    """Bytes of the float32 tables of cos and sin, one per distinct rope."""
    return sum(num_positions * rope.dim * 4 for rope in {block.attention.rope for block in decoder.blocks})


def activation_bytes(decoder: Decoder, num_tokens: int, itemsize: int, num_logit_rows: int) -> int:
    """An upper bound of what one forward of `num_tokens` tokens holds at a time, beside weights and KV cache.

    The residual stream and its normed copy live throughout; beside them either attention (qkv, the rotated heads in
    float32 and in the model's dtype, the output) or the MLP (gate and up, their product, the output), and at the end
    the logits in the model's dtype and in float32.
    """
    widest = 0
    for block in set(decoder.blocks):
        attention, mlp = block.attention, block.mlp
        heads = (attention.num_heads + attention.num_kv_heads) * attention.head_dim
        in_attention = (attention.qkv.out + heads + attention.out.inp) * itemsize + 2 * heads * 4
        in_mlp = (mlp.gate_up.out + 2 * mlp.down.inp) * itemsize
        widest = max(widest, in_attention, in_mlp)
    stream = 3 * decoder.hidden_size * itemsize + decoder.hidden_size * 4
    return num_tokens * (stream + widest) + num_logit_rows * decoder.vocab_size * (itemsize + 4)
