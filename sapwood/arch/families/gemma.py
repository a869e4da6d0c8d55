"""Gemma 1 and 2, VaultGemma: (1 + w) norms, scaled embeddings; in Gemma 2 norms around attention and MLP, and capped scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.common import ACTIVATIONS, FULL, SLIDING, Layout, block, decoder, every, gqa, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Block, Decoder, Mlp

GEMMA = Layout(offset=1.0)
AROUND = Layout(offset=1.0, ffn_norm="pre_feedforward_layernorm")


def gemma(c: HfConfig) -> Decoder:
    c.refuse("use_bidirectional_attention", because="attention is causal")
    c.ignore("hidden_act", "hidden_activation")  # whatever they say, these were trained with the approximation
    bias = c.boolean("attention_bias", False)
    layer = block(c, gqa(c, GEMMA, qkv_bias=bias, out_bias=bias), mlp(c, activation="gelu_tanh"), GEMMA)
    return scaled(c, [layer] * c.integer("num_hidden_layers"))


def gemma2(c: HfConfig) -> Decoder:
    layers = {kind: around(c, _capped(c, kind), hidden_mlp(c)) for kind in (FULL, SLIDING)}
    return _finish(c, [layers[kind] for kind in every(c, 2)])


def vaultgemma(c: HfConfig) -> Decoder:
    layers = {kind: block(c, _capped(c, kind), hidden_mlp(c), AROUND) for kind in (FULL, SLIDING)}
    return _finish(c, [layers[kind] for kind in every(c, 2)])


def around(c: HfConfig, attention: Attention, ffn: Mlp) -> Block:
    """A block with norms before and after its halves."""
    return replace(
        block(c, attention, ffn, AROUND),
        after_mixer=AROUND.normed(c, "post_attention_layernorm"),
        after_ffn=AROUND.normed(c, "post_feedforward_layernorm"),
    )


def _capped(c: HfConfig, kind: str) -> Attention:
    bias = c.boolean("attention_bias", False)
    attention = gqa(
        c,
        AROUND,
        window=c.integer("sliding_window") if kind == SLIDING else None,
        scale=c.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=bias,
        out_bias=bias,
    )
    return replace(attention, cap=c.number("attn_logit_softcapping") if c.has("attn_logit_softcapping") else None)


def hidden_mlp(c: HfConfig) -> Mlp:
    return mlp(c, activation=c.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"))


def _finish(c: HfConfig, blocks: list[Block]) -> Decoder:
    c.refuse("use_bidirectional_attention", because="attention is causal")
    c.ignore("sliding_window", "hidden_act")
    cap = c.number("final_logit_softcapping") if c.has("final_logit_softcapping") else None
    return replace(scaled(c, blocks), logit_cap=cap)


def scaled(c: HfConfig, blocks: list[Block]) -> Decoder:
    return decoder(c, blocks, GEMMA, embed_scale=c.integer("hidden_size") ** 0.5, tied=True)


def _gemma2_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    scale_of = config["head_dim"]
    if config["num_hidden_layers"] == 46:  # of the published sizes, only 27B scales queries otherwise
        scale_of = config["hidden_size"] // config["num_attention_heads"]
    return rope_fields(m, config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale_of,
        "sliding_window": m.count("attention.sliding_window"),
        "attn_logit_softcapping": m.number("attn_logit_softcapping"),
        "final_logit_softcapping": m.number("final_logit_softcapping"),
    }


FAMILIES = (
    Family(
        architecture="GemmaForCausalLM",
        declare=gemma,
        gguf=Gguf(architecture="gemma", fields=rope_fields, norm_offset=1.0),
    ),
    Family(
        architecture="Gemma2ForCausalLM",
        declare=gemma2,
        gguf=Gguf(
            architecture="gemma2",
            fields=_gemma2_fields,
            names={
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
            norm_offset=1.0,
        ),
    ),
    Family(architecture="VaultGemmaForCausalLM", declare=vaultgemma),
)
