"""Llama 1 to 3.3, SmolLM2, Yi; Mistral, Ministral 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.arch.families.common import block, decoder, gqa, mlp, window_of
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder


def llama(c: HfConfig) -> Decoder:
    bias = c.boolean("attention_bias", False)
    attention = gqa(c, qkv_bias=bias, out_bias=bias)
    layer = block(c, attention, mlp(c, bias=c.boolean("mlp_bias", False)))
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def mistral(c: HfConfig) -> Decoder:
    window = window_of(c)
    layer = block(c, gqa(c, window=window), mlp(c))
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "attention_bias": "blk.0.attn_q.bias" in m.gguf.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in m.gguf.tensors,
        "sliding_window": m.get("attention.sliding_window") or None,
    }


FAMILIES = (
    Family(
        architecture="LlamaForCausalLM",
        declare=llama,
        gguf=Gguf(architecture="llama", fields=_gguf_fields, paired=True),
    ),
    Family(architecture="MistralForCausalLM", declare=mistral),
    Family(architecture="Ministral3ForCausalLM", declare=mistral),
)
