"""Experts scored by a softmax, beside Mixtral's and Qwen's: OLMoE, Granite 3 MoE, ERNIE 4.5, Hunyuan-A13B, Phi-3.5-MoE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.experts import Experts, Offsets
from sapwood.arch.families.common import Layout, block, decoder, gqa, mlp, window_of
from sapwood.arch.families.granite import granite_fields, multiplied
from sapwood.arch.families.kin import HUNYUAN, interleaved
from sapwood.arch.families.mixture import GGUF_NAMES, MIXTRAL, Names, experts, num_experts, shared_mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.base.selection import Selection

GRANITE = Names(
    at="block_sparse_moe", router="router.layer", gate="input_linear", up="input_linear", down="output_linear"
)
GRANITE_APART = replace(GRANITE, gate="experts.{}.gate_proj", up="experts.{}.up_proj", down="experts.{}.down_proj")
"""As GGUF files have them."""
PHI = Layout(center=True, bias=True)


def olmoe(c: HfConfig) -> Decoder:
    c.refuse("clip_qkv", because="queries, keys and values are not cut")
    bias = c.boolean("attention_bias", False)
    selection = Selection(c.integer("num_experts_per_tok"), renormalised=c.boolean("norm_topk_prob", False))
    ffn = experts(c, inner=c.integer("intermediate_size"), selection=selection)
    layer = block(c, gqa(c, qkv_bias=bias, out_bias=bias, qk_norm="all"), ffn)
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def granite_moe(c: HfConfig) -> Decoder:
    return multiplied(c, granite_experts(c))


def granite_experts(c: HfConfig) -> Experts:
    """Beside one that all tokens see, if there is one."""
    shared, inner = None, c.count("shared_intermediate_size", 0)
    if inner:
        shared = shared_mlp(c, "shared_mlp", inner, ("input_linear", "input_linear", "output_linear"))
    selection = Selection(c.integer("num_experts_per_tok"), renormalised=True)
    inner = c.integer("intermediate_size")
    return experts(c, GRANITE, other=GRANITE_APART, inner=inner, selection=selection, shared=shared)


def ernie_moe(c: HfConfig) -> Decoder:
    """Layers have experts from a first to a last one, every so many-th."""
    c.spelt(num_experts="moe_num_experts", num_experts_per_tok="moe_k")
    c.refuse("use_bias", because="no published model has them")
    c.ignore("moe_norm_min", "compression_ratio", "moe_capacity", "moe_use_aux_free")
    inner, number = c.integer("moe_intermediate_size"), c.count("moe_num_shared_experts", 0)
    ffn = experts(
        c,
        inner=inner,
        selection=Selection(c.integer("num_experts_per_tok"), renormalised=True),
        offsets=Offsets("mlp.moe_statics.e_score_correction_bias", num_experts(c), row=True),
        shared=shared_mlp(c, "mlp.shared_experts", inner * number) if number else None,
    )
    attention = gqa(c, rope=interleaved(c))
    sparse, plain = block(c, attention, ffn), block(c, attention, mlp(c))
    layers, step = c.integer("num_hidden_layers"), c.integer("moe_layer_interval", 1)
    first, last = c.count("moe_layer_start_index", 0), c.index("moe_layer_end_index", layers, -1)
    has = [first <= i <= last and (i + 1) % step == 0 for i in range(layers)]
    return decoder(c, [sparse if one else plain for one in has], tied=True)


def hunyuan_moe(c: HfConfig) -> Decoder:
    """Queries and keys are normed when they have been turned."""
    c.must("use_qk_norm", True)
    c.must("use_mixed_mlp_moe", True)
    bias = c.boolean("attention_bias", False)
    inner = c.alike("moe_intermediate_size", c.integer("intermediate_size"))
    shared = shared_mlp(c, "mlp.shared_mlp", inner * c.alike("num_shared_expert", 1))
    selection = Selection(c.alike("moe_topk"), renormalised=True)
    ffn = experts(c, Names(router="gate.wg"), inner=inner, selection=selection, shared=shared)
    attention = replace(gqa(c, HUNYUAN, qkv_bias=bias, out_bias=bias, qk_norm="heads"), late=True)
    return decoder(c, [block(c, attention, ffn)] * c.integer("num_hidden_layers"))


def phimoe(c: HfConfig) -> Decoder:
    c.ignore("input_jitter_noise")
    window = window_of(c)
    bias = c.boolean("attention_bias", False)
    slack = 2 * c.number("router_jitter_noise", 0.01)
    selection = Selection(c.integer("num_experts_per_tok"), "sparsemix", slack=slack)
    ffn = experts(c, MIXTRAL, inner=c.integer("intermediate_size"), selection=selection)
    layer = block(c, gqa(c, PHI, window=window, qkv_bias=bias, out_bias=bias), ffn, PHI)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), PHI, head_bias=c.boolean("lm_head_bias", False))


def _gguf_experts(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "num_experts": m.count("expert_count"),
        "num_experts_per_tok": m.count("expert_used_count"),
    }


def _granite_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    m.refuse("expert_shared_feed_forward_length", because="shared experts are not read from such files")
    return granite_fields(m, config) | _gguf_experts(m, config)


def _ernie_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a shared expert's size is not it."""
    m.get("expert_shared_feed_forward_length")
    return _gguf_experts(m, config) | {
        "moe_intermediate_size": m.count("expert_feed_forward_length"),
        "moe_num_shared_experts": m.get("expert_shared_count", 0),
        "moe_layer_interval": m.count("interleave_moe_layer_step", 1),
        "moe_layer_start_index": m.get("leading_dense_block_count", 0),
    }


def _hunyuan_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    """The base of angles has been multiplied already."""
    inner, number = m.count("expert_feed_forward_length"), m.count("expert_shared_count", 1)
    if m.count("expert_shared_feed_forward_length", inner * number) != inner * number:
        raise m.wrong("expert_shared_feed_forward_length", "is not that of so many experts, which is not supported")
    found = _gguf_experts(m, config)
    return found | {
        "moe_topk": found.pop("num_experts_per_tok"),
        "intermediate_size": inner,
        "num_shared_expert": number,
        "use_qk_norm": True,
        "use_mixed_mlp_moe": True,
    }


_SHARED = {f"ffn_{one}_shexp": f"mlp.shared_mlp.{one}_proj" for one in ("gate", "up", "down")}
_HUNYUAN_NAMES = GGUF_NAMES | _SHARED | {
    "ffn_gate_inp": "mlp.gate.wg",
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
}  # fmt: skip

_GRANITE_NAMES = {
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    **{f"ffn_{one}_exps": f"block_sparse_moe.experts.{{}}.{one}_proj" for one in ("gate", "up", "down")},
}

FAMILIES = (
    Family(
        architecture="OlmoeForCausalLM",
        declare=olmoe,
        gguf=Gguf(architecture="olmoe", fields=_gguf_experts, names=GGUF_NAMES),
    ),
    Family(
        architecture="GraniteMoeForCausalLM",
        declare=granite_moe,
        gguf=Gguf(architecture="granitemoe", fields=_granite_fields, names=_GRANITE_NAMES, paired=True),
    ),
    Family(architecture="GraniteMoeSharedForCausalLM", declare=granite_moe),
    Family(
        architecture="Ernie4_5_MoeForCausalLM",
        declare=ernie_moe,
        gguf=Gguf(
            architecture="ernie4_5-moe",
            fields=_ernie_fields,
            names=GGUF_NAMES | {"exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"},
        ),
    ),
    Family(
        architecture="HunYuanMoEV1ForCausalLM",
        declare=hunyuan_moe,
        gguf=Gguf(architecture="hunyuan-moe", fields=_hunyuan_fields, names=_HUNYUAN_NAMES),
    ),
    Family(architecture="PhimoeForCausalLM", declare=phimoe),
    Family(architecture="PhiMoEForCausalLM", declare=phimoe),
)
