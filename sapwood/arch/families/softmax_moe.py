"""Experts scored by a softmax, beside Mixtral's and Qwen's: OLMoE, Granite 3 MoE, ERNIE 4.5, Hunyuan-A13B, Phi-3.5-MoE."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.experts import Experts, Offsets
from sapwood.arch.families.common import Layout, block, decoder, gqa, mlp, window_of
from sapwood.arch.families.granite import multiplied
from sapwood.arch.families.kin import HUNYUAN, interleaved
from sapwood.arch.families.mixture import MIXTRAL, Names, experts, num_experts, shared_mlp
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.base.selection import Selection

GRANITE = Names(
    at="block_sparse_moe", router="router.layer", gate="input_linear", up="input_linear", down="output_linear"
)
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
    return experts(c, GRANITE, inner=c.integer("intermediate_size"), selection=selection, shared=shared)


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


FAMILIES = (
    Family(architecture="OlmoeForCausalLM", declare=olmoe),
    Family(architecture="GraniteMoeForCausalLM", declare=granite_moe),
    Family(architecture="GraniteMoeSharedForCausalLM", declare=granite_moe),
    Family(architecture="Ernie4_5_MoeForCausalLM", declare=ernie_moe),
    Family(architecture="HunYuanMoEV1ForCausalLM", declare=hunyuan_moe),
    Family(architecture="PhimoeForCausalLM", declare=phimoe),
    Family(architecture="PhiMoEForCausalLM", declare=phimoe),
)
