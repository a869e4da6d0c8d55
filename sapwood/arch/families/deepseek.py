"""DeepSeek V2, V2-Lite, V3, V3.1 and R1, Kimi K2, which is declared as a V3, and GLM-4.7-Flash: latent attention and experts."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.experts import Experts, Offsets
from sapwood.arch.families.common import block, decoder, mlp
from sapwood.arch.families.mixture import behind_dense, experts, shared_experts, with_next
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.latent import LatentAttention
from sapwood.arch.parts import Decoder, Linear, Norm, Part
from sapwood.arch.rope import read_rope, yarn_attention_factor
from sapwood.arch.scaling import YarnScaling
from sapwood.base.selection import Selection

_ROUTING = {"greedy": (False, 1), "group_limited_greedy": (True, 1), "noaux_tc": (True, 2)}
"""By `topk_method`: whether groups limit the choice, and how many of a group's best say how good it is."""


def deepseek_v2(c: HfConfig) -> Decoder:
    selection = _selection(c, "greedy", "softmax", renormalised=False)
    return _decoder(c, _experts(c, replace(selection, renormalised=False)), interleaved=True)


def deepseek_v3(c: HfConfig) -> Decoder:
    c.ignore("num_mtp_layers")
    ffn = _experts(c, _selection(c, "noaux_tc", "sigmoid", renormalised=True))
    offsets = Offsets("mlp.gate.e_score_correction_bias", ffn.count)
    made = _decoder(c, replace(ffn, offsets=offsets), interleaved=c.boolean("rope_interleave", True))
    return with_next(c, made)


def glm4_moe_lite(c: HfConfig) -> Decoder:
    """V3's, of which the first layer has no experts where nothing else is said."""
    c.assume(first_k_dense_replace=1, routed_scaling_factor=1.8)
    return deepseek_v3(c)


def _selection(c: HfConfig, method: str, score: str, *, renormalised: bool) -> Selection:
    limited, group_best = c.choice("topk_method", _ROUTING, method)
    return Selection(
        top=c.integer("num_experts_per_tok"),
        score=c.choice("scoring_func", {"softmax": "softmax", "sigmoid": "sigmoid"}, score),
        renormalised=c.boolean("norm_topk_prob", renormalised),
        scale=c.number("routed_scaling_factor", 1.0),
        groups=c.integer("n_group", 1) if limited else 1,
        top_groups=c.integer("topk_group", 1) if limited else 1,
        group_best=group_best,
    )


def _experts(c: HfConfig, selection: Selection) -> Experts:
    c.ignore("seq_aux", "aux_loss_alpha", "ep_size", "n_group", "topk_group")
    inner = c.integer("moe_intermediate_size")
    return experts(c, inner=inner, selection=selection, shared=shared_experts(c, inner))


def _decoder(c: HfConfig, ffn: Experts, *, interleaved: bool) -> Decoder:
    attention = latent_attention(c, interleaved=interleaved)
    sparse, plain = block(c, attention, ffn), block(c, attention, mlp(c, bias=c.boolean("mlp_bias", False)))
    return decoder(c, [sparse if one else plain for one in behind_dense(c)])


def latent_attention(c: HfConfig, *, interleaved: bool) -> LatentAttention:
    c.ignore("head_dim", "qk_head_dim", "num_key_value_heads")
    hidden, heads, eps = c.integer("hidden_size"), c.integer("num_attention_heads"), c.number("rms_norm_eps")
    nope, turned, value = c.integer("qk_nope_head_dim"), c.integer("qk_rope_head_dim"), c.integer("v_head_dim")
    rank, low = c.integer("kv_lora_rank"), c.integer("q_lora_rank") if c.has("q_lora_rank") else None
    bias = c.boolean("attention_bias", False)
    rope = replace(read_rope(c, head_dim=turned), interleaved=interleaved)
    kv_down = Part("self_attn.kv_a_proj_with_mqa", rank + turned)
    size = heads * (nope + turned)
    queries = Part("self_attn.q_proj" if low is None else "self_attn.q_b_proj", size, unit=nope + turned)
    return LatentAttention(
        num_heads=heads,
        nope=nope,
        down=Linear(hidden, (kv_down,) if low is None else (Part("self_attn.q_a_proj", low), kv_down), None, bias=bias),
        q_norm=None if low is None else Norm("self_attn.q_a_layernorm", low, eps),
        q=Linear(hidden if low is None else low, (queries,), "out"),
        kv_norm=Norm("self_attn.kv_a_layernorm", rank, eps),
        up=Linear(rank, (Part("self_attn.kv_b_proj", heads * (nope + value), unit=nope + value),), "out"),
        out=Linear(heads * value, (Part("self_attn.o_proj", hidden),), "in", unit=value, bias=bias),
        rope=rope,
        scale=(nope + turned) ** -0.5 * _sharpening(c, rope.scaling) ** 2,
    )


def _sharpening(c: HfConfig, scaling: object) -> float:
    """What YaRN multiplies queries and keys by, where a model says `mscale_all_dim`: the angles have only what is beyond it."""
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(scaling, YarnScaling) and c.has(name) and (section := c.section(name)).has("mscale_all_dim"):
            return yarn_attention_factor(scaling.factor, section.number("mscale_all_dim"))
    return 1.0


FAMILIES = (
    Family(architecture="DeepseekV2ForCausalLM", declare=deepseek_v2),
    Family(architecture="DeepseekV3ForCausalLM", declare=deepseek_v3),
    Family(architecture="Glm4MoeLiteForCausalLM", declare=glm4_moe_lite),
)
