"""Experts scored by a sigmoid, with offsets that even out who is chosen: GLM-4.5, dots.llm1, MiniMax-M2, Solar Open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sapwood.arch.experts import Experts, Offsets
from sapwood.arch.families.common import block, decoder, gqa, mlp
from sapwood.arch.families.mixture import (
    GGUF_NAMES,
    MIXTRAL,
    behind_dense,
    experts,
    first_dense,
    gguf_experts,
    grouped,
    num_experts,
    shared_experts,
)
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Decoder
from sapwood.arch.rope import read_rope
from sapwood.base.selection import Selection


def glm4_moe(c: HfConfig) -> Decoder:
    normed = c.boolean("use_qk_norm", False)
    return _decoder(c, gqa(c, qkv_bias=c.boolean("attention_bias", False), qk_norm="heads" if normed else None))


def dots1(c: HfConfig) -> Decoder:
    c.must("scoring_func", "noaux_tc")
    c.ignore("moe_layer_freq", "sliding_window", "max_window_layers", "layer_types", "use_sliding_window")
    bias = c.boolean("attention_bias", False)
    return _decoder(c, gqa(c, qkv_bias=bias, out_bias=bias, qk_norm="heads"))


def solar_open(c: HfConfig) -> Decoder:
    """All layers have experts."""
    attention = gqa(c, qkv_bias=c.boolean("attention_bias", False))
    return decoder(c, [block(c, attention, _experts(c, "mlp.gate"))] * c.integer("num_hidden_layers"))


def exaone_moe(c: HfConfig, attentions: Sequence[Attention]) -> Decoder:
    """With the attention of each layer."""
    c.spelt(n_shared_experts="num_shared_experts")
    c.assume(n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=2.5)
    sparse, plain = _experts(c, "mlp"), mlp(c)
    layers = zip(attentions, behind_dense(c), strict=True)
    return decoder(c, [block(c, attention, sparse if one else plain) for attention, one in layers])


def _decoder(c: HfConfig, attention: Attention) -> Decoder:
    return first_dense(c, attention, _experts(c, "mlp.gate"))


def _experts(c: HfConfig, at: str) -> Experts:
    """And those that all tokens see; the offsets are found `at` a place."""
    inner = c.integer("moe_intermediate_size")
    return experts(c, inner=inner, selection=grouped(c), offsets=_offsets(c, at), shared=shared_experts(c, inner))


def minimax_m2(c: HfConfig) -> Decoder:
    """Queries and keys are normed as a whole."""
    c.must("scoring_func", "sigmoid")
    c.must("use_routing_bias", True)
    c.must("use_qk_norm", True)
    c.must("qk_norm_type", "per_layer")
    c.ignore("use_mtp", "num_mtp_modules", "mtp_transformer_layers", "attn_type_list", "shared_moe_mode")
    c.refuse("shared_intermediate_size", because="which gate a shared expert has is not said")
    rope = read_rope(c, head_dim=c.integer("head_dim"))
    if c.has("rotary_dim"):
        rope = replace(rope, dim=c.integer("rotary_dim"))
    selection = Selection(c.integer("num_experts_per_tok"), "sigmoid", renormalised=True)
    ffn = experts(
        c, MIXTRAL, inner=c.integer("intermediate_size"), selection=selection, offsets=_offsets(c, MIXTRAL.at)
    )
    layer = block(c, gqa(c, rope=rope, qk_norm="all"), ffn)
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def _offsets(c: HfConfig, at: str) -> Offsets:
    return Offsets(f"{at}.e_score_correction_bias", num_experts(c))


def _glm_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks behind the last one, which draft, are counted too."""
    more = m.get("nextn_predict_layers", 0)
    return rope_fields(m, config) | gguf_experts(m) | {
        "num_hidden_layers": config["num_hidden_layers"] - more,
        "num_nextn_predict_layers": more,
        "attention_bias": "blk.0.attn_q.bias" in m.gguf.tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in m.gguf.tensors,
    }  # fmt: skip


def _dots_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | gguf_experts(m) | {"scoring_func": "noaux_tc"}


def _minimax_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    found = gguf_experts(m)
    stated = {name: found[name] for name in ("num_experts", "num_experts_per_tok")}
    return rope_fields(m, config) | stated | {
        "intermediate_size": found["moe_intermediate_size"],
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
    }  # fmt: skip


_GLM_NAMES = GGUF_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "nextn.eh_proj": "eh_proj",
    "nextn.embed_tokens": "embed_tokens",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.shared_head_head": "shared_head.head",
    "nextn.shared_head_norm": "shared_head.norm",
}
_MINIMAX_NAMES = MappingProxyType({
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias",
})  # fmt: skip

FAMILIES = (
    Family(
        architecture="Glm4MoeForCausalLM",
        declare=glm4_moe,
        gguf=Gguf(architecture="glm4moe", fields=_glm_fields, names=_GLM_NAMES),
    ),
    Family(
        architecture="Dots1ForCausalLM",
        declare=dots1,
        gguf=Gguf(architecture="dots1", fields=_dots_fields, names=GGUF_NAMES),
    ),
    Family(
        architecture="MiniMaxM2ForCausalLM",
        declare=minimax_m2,
        gguf=Gguf(architecture="minimax-m2", fields=_minimax_fields, names=_MINIMAX_NAMES),
    ),
    Family(architecture="SolarOpenForCausalLM", declare=solar_open),
)
