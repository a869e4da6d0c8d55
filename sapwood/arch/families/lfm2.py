"""LFM2 (dense and with experts): short convolutions, and some layers of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.arch.experts import Experts, Offsets
from sapwood.arch.families.common import FULL, Layout, block, decoder, gqa, mlp
from sapwood.arch.families.mixture import Names, experts, gguf_experts, num_experts
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder, Linear, Mixer, Mlp, Part
from sapwood.arch.recurrent import Conv, ShortConv
from sapwood.base.errors import ModelError
from sapwood.base.selection import Selection

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

_EXPERTS = Names(at="feed_forward", gate="experts.{}.w1", up="experts.{}.w3", down="experts.{}.w2")


def lfm2(c: HfConfig) -> Decoder:
    return _decoder(c, [mlp(c, _LAYOUT, inner=_inner(c), activation="silu")] * c.integer("num_hidden_layers"))


def lfm2_moe(c: HfConfig) -> Decoder:
    """The first layers have no experts."""
    dense, number = c.count("num_dense_layers", 2), c.integer("num_hidden_layers")
    selection = Selection(
        c.integer("num_experts_per_tok"),
        "sigmoid",
        renormalised=c.boolean("norm_topk_prob", True),
        scale=c.number("routed_scaling_factor", 1.0),
    )
    offsets = Offsets("feed_forward.expert_bias", num_experts(c)) if c.boolean("use_expert_bias", True) else None
    sparse = experts(c, _EXPERTS, inner=c.integer("moe_intermediate_size"), selection=selection, offsets=offsets)
    plain = mlp(c, _LAYOUT, activation="silu")
    return _decoder(c, [plain if i < dense else sparse for i in range(number)])


def _decoder(c: HfConfig, ffns: Sequence[Mlp | Experts]) -> Decoder:
    mixers: Mapping[str, Mixer] = {_CONV: _conv(c), FULL: gqa(c, _LAYOUT, qk_norm="heads")}
    number, kinds = c.integer("num_hidden_layers"), c.strings("layer_types")
    c.ignore("full_attn_idxs")
    if len(kinds) != number or not set(kinds) <= set(mixers):
        raise ModelError(
            f"config.json: layer_types must be num_hidden_layers ({number}) words of {', '.join(mixers)}, got {list(kinds)}."
        )
    tied = c.boolean("tie_embedding", True)
    return decoder(
        c, [block(c, mixers[kind], ffn, _LAYOUT) for kind, ffn in zip(kinds, ffns, strict=True)], _LAYOUT, tied=tied
    )


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


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    """Layers without heads of keys are convolutions. MLPs are as wide as is said."""
    heads = m.layers("attention.head_count_kv")
    if heads is None or len(heads) != config["num_hidden_layers"]:
        raise m.wrong("attention.head_count_kv", "must say of each layer how many there are")
    return rope_fields(m, config) | {
        "layer_types": [FULL if count else _CONV for count in heads],
        "conv_L_cache": m.count("shortconv.l_cache"),
        "norm_eps": config["rms_norm_eps"],
        "rms_norm_eps": None,
        "hidden_act": None,  # always SiLU
        "block_auto_adjust_ff_dim": False,
    }


def _gguf_fields_moe(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    found = gguf_experts(m)
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "routed_scaling_factor")
    stated = {name: found[name] for name in names}
    dense = found["first_k_dense_replace"]
    return _gguf_fields(m, config) | stated | {"num_dense_layers": dense, "norm_topk_prob": True}


_GGUF_NAMES = {
    "attn_norm": "operator_norm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "ffn_gate_inp": "feed_forward.gate",
    "ffn_gate_exps": "feed_forward.experts.{}.w1",
    "ffn_up_exps": "feed_forward.experts.{}.w3",
    "ffn_down_exps": "feed_forward.experts.{}.w2",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
_GGUF_OUTER = {"token_embd_norm": "model.embedding_norm", "output_norm": "model.embedding_norm"}

FAMILIES = (
    Family(
        architecture="Lfm2ForCausalLM",
        declare=lfm2,
        gguf=Gguf(architecture="lfm2", fields=_gguf_fields, names=_GGUF_NAMES, outer=_GGUF_OUTER),
    ),
    Family(
        architecture="Lfm2MoeForCausalLM",
        declare=lfm2_moe,
        gguf=Gguf(architecture="lfm2moe", fields=_gguf_fields_moe, names=_GGUF_NAMES, outer=_GGUF_OUTER),
    ),
)
