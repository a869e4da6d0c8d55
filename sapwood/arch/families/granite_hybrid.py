"""Granite 4 (dense and with experts): Mamba-2, some layers of attention without positions, and Granite's multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sapwood.arch.experts import Experts
from sapwood.arch.families.common import Layout, block, decoder, gqa, mlp
from sapwood.arch.families.mamba2 import Fields, mixer
from sapwood.arch.families.softmax_moe import granite_experts
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Decoder, Mixer, Mlp
from sapwood.base.errors import ModelError

_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "mamba": "mamba",
        "linear_attention": "mamba",
        "attention": "attention",
        "full_attention": "attention",
    }
)
_LAYOUT = Layout(up=("shared_mlp.input_linear",), down="shared_mlp.output_linear")


def granite_hybrid(c: HfConfig) -> Decoder:
    c.ignore("mamba_expand", "mamba_chunk_size")
    bias = c.boolean("attention_bias", False)
    turned = c.choice("position_embedding_type", {"nope": False, "rope": True}, "nope")
    attention = gqa(
        c,
        rope=None if turned else STILL,
        scale=c.number("attention_multiplier", 1.0),
        qkv_bias=bias,
        out_bias=bias,
    )
    c.ignore("rope_theta", "rope_scaling", "rope_parameters")  # where nothing is turned
    mixers: Mapping[str, Mixer] = {"mamba": mixer(c, Fields(), c.number("rms_norm_eps")), "attention": attention}
    ffn, scale = _ffn(c), c.number("residual_multiplier", 1.0)
    blocks = [replace(block(c, mixers[kind], ffn, _LAYOUT), scale=scale) for kind in _layers(c)]
    found = decoder(c, blocks, embed_scale=c.number("embedding_multiplier", 1.0), tied=True)
    return replace(found, logit_scale=1 / c.number("logits_scaling", 1.0))


def _ffn(c: HfConfig) -> Mlp | Experts:
    """What all tokens see, beside experts if there are any."""
    if c.count("num_local_experts", 0):
        return granite_experts(c)
    c.ignore("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef", "intermediate_size")
    return mlp(c, _LAYOUT, inner=c.integer("shared_intermediate_size"))


def _layers(c: HfConfig) -> tuple[str, ...]:
    number, kinds = c.integer("num_hidden_layers"), c.strings("layer_types")
    if len(kinds) != number or not {*kinds} <= {*_KINDS}:
        raise ModelError(
            f"config.json: layer_types must be num_hidden_layers ({number}) words of {', '.join(_KINDS)}, got {list(kinds)}."
        )
    return tuple(_KINDS[kind] for kind in kinds)


FAMILIES = (Family(architecture="GraniteMoeHybridForCausalLM", declare=granite_hybrid),)
