"""Gemma 3, text only: norms around attention and MLP, (1 + w) norms, sliding layers with a rope of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sapwood.arch.families.common import FULL, SLIDING, every, gqa
from sapwood.arch.families.gemma import AROUND, around, hidden_mlp, scaled
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder, Rope
from sapwood.arch.rope import parse_rope, read_rope

GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0
PATTERN = 6  # every sixth layer is global, where nothing says otherwise


def gemma3(c: HfConfig) -> Decoder:
    c.refuse("attn_logit_softcapping", "final_logit_softcapping", because="logits are not capped")
    c.refuse("use_bidirectional_attention", because="attention is causal")
    pattern = c.integer("sliding_window_pattern", c.integer("_sliding_window_pattern", PATTERN))
    kinds = every(c, pattern)
    layers = {kind: _block(c, kind) for kind in sorted(set(kinds))}
    # Said of both kinds of layers, even where there is only one; what Gemma 3 computes is in hidden_activation.
    c.ignore("sliding_window", "rope_local_base_freq", "rope_theta", "rope_scaling", "hidden_act")
    return scaled(c, [layers[kind] for kind in kinds])


def _block(c: HfConfig, kind: str) -> Block:
    bias = c.boolean("attention_bias", False)
    attention = gqa(
        c,
        AROUND,
        window=c.integer("sliding_window") if kind == SLIDING else None,
        rope=_rope(c, kind),
        scale=c.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="heads",
    )
    return around(c, attention, hidden_mlp(c))


def _rope(c: HfConfig, kind: str) -> Rope:
    """From one object per kind of layer, or from the older fields, where scaling is only for the global layers."""
    head_dim = c.integer("head_dim")
    if c.has("rope_parameters"):
        theta = LOCAL_THETA if kind == SLIDING else GLOBAL_THETA
        return parse_rope(c, c.section("rope_parameters").section(kind), head_dim=head_dim, theta=theta)
    if kind == SLIDING:
        return Rope(head_dim, c.number("rope_local_base_freq", LOCAL_THETA))
    return read_rope(c, head_dim=head_dim, theta=GLOBAL_THETA)


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    m.refuse("attn_logit_softcapping", "final_logit_softcapping", because="logits are not capped")
    num_layers = config["num_hidden_layers"]
    slides = m.layers("attention.sliding_window_pattern")
    if not isinstance(slides, np.ndarray):
        pattern = m.count("attention.sliding_window_pattern", PATTERN)
        slides = [bool((i + 1) % pattern) for i in range(num_layers)]
    scale_of = config["head_dim"]
    if num_layers == 62:  # of the published sizes, only 27B scales queries otherwise, and the format does not say
        scale_of = config["hidden_size"] // config["num_attention_heads"]
    return rope_fields(m, config, default_base=m.number("rope.global.freq_base", GLOBAL_THETA)) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale_of,
        "sliding_window": m.count("attention.sliding_window"),
        "rope_local_base_freq": m.number("rope.freq_base_swa", m.number("rope.local.freq_base", LOCAL_THETA)),
        "layer_types": [SLIDING if slide else FULL for slide in slides],
    }


FAMILIES = (
    Family(
        architecture="Gemma3ForCausalLM",
        declare=gemma3,
        gguf=Gguf(
            architecture="gemma3",
            fields=_gguf_fields,
            names={
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
            norm_offset=1.0,  # the whole factor, 1 + w
        ),
    ),
)
