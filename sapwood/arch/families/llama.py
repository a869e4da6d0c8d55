"""Llama 1 to 3.3, SmolLM2, Yi; Mistral."""

from __future__ import annotations

from sapwood.arch.families.common import block, decoder, gqa, mlp
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder


def llama(c: HfConfig) -> Decoder:
    bias = c.boolean("attention_bias", False)
    attention = gqa(c, qkv_bias=bias, out_bias=bias)
    layer = block(c, attention, mlp(c, bias=c.boolean("mlp_bias", False)))
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def mistral(c: HfConfig) -> Decoder:
    window = c.integer("sliding_window") if c.has("sliding_window") else None
    layer = block(c, gqa(c, window=window), mlp(c))
    return decoder(c, [layer] * c.integer("num_hidden_layers"))
