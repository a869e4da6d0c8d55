"""Qwen3-Next: gated delta nets, each fourth layer attention with a gate, and experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sapwood.arch.families.common import FULL, Layout, block, decoder, gqa, mlp
from sapwood.arch.families.qwen_moe import routed, shared, sparse_layers
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Decoder, Linear, Mixer, Norm, Part
from sapwood.arch.recurrent import Conv, DeltaNet, PerHead
from sapwood.arch.rope import read_rope
from sapwood.base.errors import ModelError

_LINEAR = "linear_attention"
_LAYOUT = Layout(offset=1.0)


def qwen3_next(c: HfConfig) -> Decoder:
    mixers: Mapping[str, Mixer] = {_LINEAR: _delta(c), FULL: _attention(c)}
    sparse, plain = shared(c, routed(c)), mlp(c)
    blocks = [
        block(c, mixers[kind], sparse if one else plain, _LAYOUT)
        for kind, one in zip(_layers(c), sparse_layers(c), strict=True)
    ]
    return replace(decoder(c, blocks, _LAYOUT), aside=("mtp.",))  # what predicts more tokens than one


def _layers(c: HfConfig) -> tuple[str, ...]:
    number, interval = c.integer("num_hidden_layers"), c.integer("full_attention_interval", 4)
    kinds = tuple(FULL if (i + 1) % interval == 0 else _LINEAR for i in range(number))
    if c.has("layer_types"):
        kinds = c.strings("layer_types")
    if len(kinds) != number or not {*kinds} <= {_LINEAR, FULL}:
        raise ModelError(
            f"config.json: layer_types must be num_hidden_layers ({number}) words of {_LINEAR}, {FULL}, got {list(kinds)}."
        )
    return kinds


def _attention(c: HfConfig) -> Attention:
    """Queries of a head and its gate lie behind each other in one tensor."""
    dim, bias = c.integer("head_dim", 256), c.boolean("attention_bias", False)
    rope = read_rope(c, head_dim=dim, partial=0.25)
    part = gqa(c, _LAYOUT, rope=rope, qkv_bias=bias, out_bias=bias, qk_norm="heads")
    queries, keys, values = part.qkv.parts
    queries = replace(queries, turn=dim)
    return replace(part, qkv=replace(part.qkv, parts=(queries, keys, values, queries)), gated=True)


def _delta(c: HfConfig) -> DeltaNet:
    hidden, at = c.integer("hidden_size"), "linear_attn."
    key_heads, heads = c.integer("linear_num_key_heads", 16), c.integer("linear_num_value_heads", 32)
    key_dim, dim = c.integer("linear_key_head_dim", 128), c.integer("linear_value_head_dim", 128)
    if heads % key_heads:
        raise ModelError(
            f"config.json: linear_num_value_heads ({heads}) is no multiple of linear_num_key_heads ({key_heads})."
        )
    keys, values, each = key_heads * key_dim, heads * dim, heads // key_heads
    key = Part(f"{at}in_proj_qkvz", keys, key_dim, turn=key_dim)
    value = Part(f"{at}in_proj_qkvz", values, each * dim, turn=each * dim)
    number = Part(f"{at}in_proj_ba", heads, each, turn=each)
    return DeltaNet(
        num_heads=heads,
        head_dim=dim,
        num_groups=key_heads,
        state_size=key_dim,
        inp=Linear(hidden, (key, key, value, value, number, number), "out"),
        conv=Conv(
            f"{at}conv1d",
            (Part("", keys, key_dim), Part("", keys, key_dim), Part("", values, each * dim)),
            c.integer("linear_conv_kernel_dim", 4),
        ),
        dt_bias=PerHead(f"{at}dt_bias", heads),
        a_log=PerHead(f"{at}A_log", heads),
        norm=Norm(f"{at}norm", dim, c.number("rms_norm_eps")),
        out=Linear(values, (Part(f"{at}out_proj", hidden),), "in", unit=dim),
    )


FAMILIES = (Family(architecture="Qwen3NextForCausalLM", declare=qwen3_next),)
