"""Llama 4, the text of it: chunks that layers see alone, each fourth layer that sees all and turns nothing, and experts."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.common import FULL, Layout, block, decoder, gqa, head_size, mlp
from sapwood.arch.families.mixture import TURNED, experts, shared_mlp
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Attention, Block, Decoder, Norm, Rope
from sapwood.arch.rope import read_rope
from sapwood.arch.scaling import Sharpening
from sapwood.base.errors import ModelError
from sapwood.base.selection import Selection

CHUNKED = "chunked_attention"
_AT = "feed_forward"
_LAYOUT = Layout(up=(f"{_AT}.gate_proj", f"{_AT}.up_proj"), down=f"{_AT}.down_proj")


def llama4(c: HfConfig) -> Decoder:
    number = c.integer("num_hidden_layers")
    turns, kinds, sparse = _turns(c, number), _kinds(c, number), _sparse(c, number)
    c.ignore("attention_chunk_size", "for_llm_compressor")
    return decoder(c, [_block(c, *one) for one in zip(kinds, turns, sparse, strict=True)], _LAYOUT)


def _block(c: HfConfig, kind: str, turned: bool, sparse: bool) -> Block:
    selection = Selection(c.integer("num_experts_per_tok", 1), "sigmoid")
    inner = c.integer("intermediate_size")
    routed = experts(
        c,
        replace(TURNED, at=_AT, router="router"),
        inner=inner,
        selection=selection,
        shared=shared_mlp(c, f"{_AT}.shared_expert", inner),
    )
    plain = mlp(c, _LAYOUT, inner=c.integer("intermediate_size_mlp", 16384))
    attention = _attention(c, chunked=kind == CHUNKED, turned=turned)
    return block(c, attention, replace(routed, weighs_input=True) if sparse else plain, _LAYOUT)


def _attention(c: HfConfig, *, chunked: bool, turned: bool) -> Attention:
    """Heads that are turned are normed behind that, without weights; queries of the others grow with their position."""
    bias, dim = c.boolean("attention_bias", False), head_size(c)
    found = gqa(
        c,
        window=c.integer("attention_chunk_size", 8192) if chunked else None,
        rope=replace(read_rope(c, head_dim=dim, theta=500000.0), interleaved=True) if turned else _still(c),
        qkv_bias=bias,
        out_bias=bias,
    )
    norm = Norm("", dim, c.number("rms_norm_eps")) if turned and c.boolean("use_qk_norm", True) else None
    return replace(found, chunked=chunked, late=norm is not None, q_norm=norm, k_norm=norm)


def _still(c: HfConfig) -> Rope:
    tuned = c.field("attn_temperature_tuning")  # a number in some configs
    slope, every = c.number("attn_scale", 0.1), c.integer("floor_scale", 8192)
    return STILL if tuned is not None and not tuned else replace(STILL, sharpening=Sharpening(slope, every, ahead=1))


def _turns(c: HfConfig, number: int) -> tuple[bool, ...]:
    interval = c.integer("no_rope_layer_interval", 4)
    usual = tuple(bool((i + 1) % interval) for i in range(number))
    return c.flags("no_rope_layers", number, usual) if c.field("no_rope_layers") else usual


def _kinds(c: HfConfig, number: int) -> tuple[str, ...]:
    chunked = c.has("attention_chunk_size") or "attention_chunk_size" not in c.names()
    kinds = tuple(CHUNKED if chunked and one else FULL for one in _turns(c, number))
    if c.has("layer_types"):
        kinds = c.strings("layer_types")
    if len(kinds) != number or not {*kinds} <= {CHUNKED, FULL}:
        raise ModelError(
            f"config.json: layer_types must be num_hidden_layers ({number}) words of {CHUNKED}, {FULL}, got {list(kinds)}."
        )
    return kinds


def _sparse(c: HfConfig, number: int) -> tuple[bool, ...]:
    """Which layers have experts: those that are named, or every so many-th."""
    step = c.integer("interleave_moe_layer_step", 1)
    named = c.integers("moe_layers") if c.has("moe_layers") else range(step - 1, number, step)
    return tuple(layer in named for layer in range(number))


FAMILIES = (Family(architecture="Llama4ForCausalLM", declare=llama4),)
