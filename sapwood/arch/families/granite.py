"""Granite 3 (dense), HyperCLOVA X and MiniCPM: Llama with multipliers of embeddings, scores, what blocks add, and logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.experts import Experts
from sapwood.arch.families.common import LLAMA, block, decoder, gqa, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder, Mixer, Mlp


def granite(c: HfConfig) -> Decoder:
    return multiplied(c, mlp(c, bias=c.boolean("mlp_bias", False)))


def multiplied(c: HfConfig, ffn: Mlp | Experts) -> Decoder:
    """With these feed-forwards."""
    return _decoder(c, _block(c, ffn), 1 / c.number("logits_scaling", 1.0))


def hyperclovax(c: HfConfig) -> Decoder:
    layer = _block(c, mlp(c, bias=c.boolean("mlp_bias", False)))
    if c.boolean("use_post_norm", True):
        layer = replace(layer, after_mixer=LLAMA.normed(c, "post_norm1"), after_ffn=LLAMA.normed(c, "post_norm2"))
    return _decoder(c, layer, c.number("logits_scaling", 1.0))


def minicpm(c: HfConfig) -> Decoder:
    return by_depth(c, gqa(c))


def by_depth(c: HfConfig, mixer: Mixer) -> Decoder:
    """What blocks add is less the more there are of them."""
    c.ignore("mup_denominator")  # of its drafters
    num_layers, hidden = c.integer("num_hidden_layers"), c.integer("hidden_size")
    layer = replace(block(c, mixer, mlp(c)), scale=c.number("scale_depth", 1.0) / num_layers**0.5)
    found = decoder(c, [layer] * num_layers, embed_scale=c.number("scale_emb", 1.0), tied=True)
    return replace(found, logit_scale=c.integer("dim_model_base", hidden) / hidden)


def _block(c: HfConfig, ffn: Mlp | Experts) -> Block:
    bias = c.boolean("attention_bias", False)
    attention = gqa(c, scale=c.number("attention_multiplier", 1.0), qkv_bias=bias, out_bias=bias)
    layer = block(c, attention, ffn)
    return replace(layer, scale=c.number("residual_multiplier", 1.0))


def _decoder(c: HfConfig, layer: Block, logit_scale: float) -> Decoder:
    blocks = [layer] * c.integer("num_hidden_layers")
    return replace(decoder(c, blocks, embed_scale=c.number("embedding_multiplier", 1.0)), logit_scale=logit_scale)


def granite_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "attention_multiplier": m.number("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": m.number("embedding_scale", 1.0),
        "residual_multiplier": m.number("residual_scale", 1.0),
        "logits_scaling": m.number("logit_scale", 1.0),
    }


def _minicpm_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "scale_emb": m.number("embedding_scale", 1.0),
        "scale_depth": m.number("residual_scale", 1.0) * config["num_hidden_layers"] ** 0.5,
        "dim_model_base": round(config["hidden_size"] / m.number("logit_scale", 1.0)),
    }


FAMILIES = (
    Family(
        architecture="GraniteForCausalLM",
        declare=granite,
        gguf=Gguf(architecture="granite", fields=granite_fields, paired=True),
    ),
    Family(architecture="HyperCLOVAXForCausalLM", declare=hyperclovax),
    Family(
        architecture="MiniCPMForCausalLM",
        declare=minicpm,
        gguf=Gguf(architecture="minicpm", fields=_minicpm_fields, paired=True),
    ),
)
