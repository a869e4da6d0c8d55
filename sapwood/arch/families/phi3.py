"""Phi-3 and Phi-4 (dense): Llama with fused projections in the checkpoint and, in some, partly rotated heads."""

from __future__ import annotations

from sapwood.arch.families.common import block, decoder, gqa, mlp
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder


def phi3(c: HfConfig) -> Decoder:
    c.refuse("attention_bias", because="Phi-3 checkpoints have no biases")
    window = c.integer("sliding_window") if c.has("sliding_window") else None
    layer = block(c, gqa(c, window=window, fused="self_attn.qkv_proj"), mlp(c, fused="mlp.gate_up_proj"))
    return decoder(c, [layer] * c.integer("num_hidden_layers"))
