"""LFM2: short convolutions, and some layers of attention."""

from __future__ import annotations

from collections.abc import Mapping

from sapwood.arch.families.common import FULL, Layout, block, decoder, gqa, mlp
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder, Linear, Mixer, Part
from sapwood.arch.recurrent import Conv, ShortConv
from sapwood.base.errors import ModelError

_CONV = "conv"
_LAYOUT = Layout(
    norm="model.embedding_norm",
    mixer_norm="operator_norm",
    ffn_norm="ffn_norm",
    out="self_attn.out_proj",
    qk_norm=("self_attn.q_layernorm", "self_attn.k_layernorm"),
    up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
    eps="norm_eps",
)


def lfm2(c: HfConfig) -> Decoder:
    mixers: Mapping[str, Mixer] = {_CONV: _conv(c), FULL: gqa(c, _LAYOUT, qk_norm="heads")}
    number, kinds = c.integer("num_hidden_layers"), c.strings("layer_types")
    c.ignore("full_attn_idxs")
    if len(kinds) != number or not set(kinds) <= set(mixers):
        raise ModelError(
            f"config.json: layer_types must be num_hidden_layers ({number}) words of {', '.join(mixers)}, got {list(kinds)}."
        )
    ffn = mlp(c, _LAYOUT, inner=_inner(c), activation="silu")
    tied = c.boolean("tie_embedding", True)
    return decoder(c, [block(c, mixers[kind], ffn, _LAYOUT) for kind in kinds], _LAYOUT, tied=tied)


def _conv(c: HfConfig) -> ShortConv:
    hidden, bias = c.integer("hidden_size"), c.boolean("conv_bias", False)
    return ShortConv(
        inp=Linear(hidden, (Part("conv.in_proj", hidden),) * 3, "out", bias=bias),
        conv=Conv("conv.conv", (Part("", hidden),), c.integer("conv_L_cache", 3), bias),
        out=Linear(hidden, (Part("conv.out_proj", hidden),), "in", bias=bias),
    )


def _inner(c: HfConfig) -> int:
    """The width of the MLPs: two thirds of what the config says, times a factor, rounded up, unless it says that it is exact."""
    inner = c.integer("block_ff_dim") if c.has("block_ff_dim") else c.integer("intermediate_size")
    multiple, factor = c.integer("block_multiple_of", 256), c.number("block_ffn_dim_multiplier", 1.0)
    if not c.boolean("block_auto_adjust_ff_dim", True):
        return inner
    return -(-int(factor * int(2 * inner / 3)) // multiple) * multiple


FAMILIES = (Family(architecture="Lfm2ForCausalLM", declare=lfm2),)
