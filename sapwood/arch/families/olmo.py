"""OLMo 1 (layer norms without weights), 2 (norms after, queries and keys normed whole) and 3 (with windows)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.common import (
    FULL,
    SLIDING,
    Layout,
    block,
    block_normed_after,
    decoder,
    every,
    gqa,
    head_size,
    mlp,
)
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder
from sapwood.arch.rope import read_rope, rope_of_kind

OLMO = Layout(norm="", mixer_norm="", ffn_norm="", eps=1e-5, center=True)


def olmo(c: HfConfig) -> Decoder:
    c.refuse("clip_qkv", because="queries, keys and values are not cut")
    bias = c.boolean("attention_bias", False)
    layer = block(c, gqa(c, OLMO, qkv_bias=bias, out_bias=bias), mlp(c), OLMO)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), OLMO)


def olmo2(c: HfConfig) -> Decoder:
    return decoder(c, [_block(c, FULL)] * c.integer("num_hidden_layers"))


def olmo3(c: HfConfig) -> Decoder:
    layers = {kind: _block(c, kind) for kind in (FULL, SLIDING)}
    return decoder(c, [layers[kind] for kind in every(c, 4)])


def _block(c: HfConfig, kind: str) -> Block:
    """Where one scaling is said for all layers, it is that of those without a window."""
    bias = c.boolean("attention_bias", False)
    head_dim = head_size(c)
    rope = rope_of_kind(c, kind, head_dim=head_dim) or read_rope(c, head_dim=head_dim)
    if kind == SLIDING and c.has("rope_scaling"):
        rope = replace(rope, scaling=None)
    attention = gqa(
        c,
        window=c.integer("sliding_window") if kind == SLIDING else None,
        rope=rope,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="all",
    )
    return block_normed_after(c, attention, mlp(c))


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    m.refuse("attention.clamp_kqv", because="queries, keys and values are not cut")
    return rope_fields(m, config)


FAMILIES = (
    Family(
        architecture="OlmoForCausalLM",
        declare=olmo,
        gguf=Gguf(architecture="olmo", fields=_gguf_fields, paired=True),
    ),
    Family(
        architecture="Olmo2ForCausalLM",
        declare=olmo2,
        gguf=Gguf(
            architecture="olmo2",
            fields=rope_fields,
            names={
                "post_attention_norm": "post_attention_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
        ),
    ),
    Family(architecture="Olmo3ForCausalLM", declare=olmo3),
)
