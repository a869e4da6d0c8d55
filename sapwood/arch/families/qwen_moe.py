"""Qwen1.5-MoE and Qwen2-57B (with a shared expert), and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sapwood.arch.experts import Experts
from sapwood.arch.families.common import block, decoder, gqa, mlp
from sapwood.arch.families.mixture import JOINED, PLAIN, TURNED, Names, experts, shared_mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Decoder, Linear, Part
from sapwood.base.selection import Selection


def qwen2_moe(c: HfConfig) -> Decoder:
    return _decoder(c, gqa(c, qkv_bias=c.boolean("qkv_bias", True)), shared(c, routed(c)))


def qwen3_moe(c: HfConfig) -> Decoder:
    bias = c.boolean("attention_bias", False)
    return _decoder(c, gqa(c, qkv_bias=bias, out_bias=bias, qk_norm="heads"), routed(c))


def qwen3_vl_moe(c: HfConfig) -> Decoder:
    """Experts in one tensor, with their inputs first, or where they were stored anew last."""
    bias = c.boolean("attention_bias", False)
    return _decoder(c, gqa(c, qkv_bias=bias, out_bias=bias, qk_norm="heads"), routed(c, TURNED, JOINED, normed=True))


def shared(c: HfConfig, ffn: Experts) -> Experts:
    """With an expert that all tokens see, as far as a gate says."""
    mlp = shared_mlp(c, "mlp.shared_expert", c.integer("shared_expert_intermediate_size"))
    return replace(
        ffn, shared=mlp, shared_gate=Linear(c.integer("hidden_size"), (Part("mlp.shared_expert_gate", 1),), None)
    )


def routed(c: HfConfig, *names: Names, normed: bool = False) -> Experts:
    """Named as by default, or joined, or as `names` have it; `normed` is the family's default of what the config says."""
    first, *others = names or (PLAIN, JOINED)
    return experts(
        c,
        first,
        other=next(iter(others), None),
        inner=c.integer("moe_intermediate_size"),
        selection=Selection(c.integer("num_experts_per_tok"), renormalised=c.boolean("norm_topk_prob", normed)),
    )


def sparse_layers(c: HfConfig) -> tuple[bool, ...]:
    """Every so many-th layer has experts, but for those that are named."""
    step, dense = c.integer("decoder_sparse_step", 1), c.integers("mlp_only_layers") if c.has("mlp_only_layers") else ()
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(c.integer("num_hidden_layers")))


def _decoder(c: HfConfig, attention: Attention, ffn: Experts) -> Decoder:
    c.refuse("use_sliding_window", because="which layers slide differs between versions of this family")
    c.ignore("sliding_window", "max_window_layers", "layer_types")
    sparse, plain = block(c, attention, ffn), block(c, attention, mlp(c))
    return decoder(c, [sparse if one else plain for one in sparse_layers(c)])


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "num_experts": m.count("expert_count"),
        "num_experts_per_tok": m.count("expert_used_count"),
        "moe_intermediate_size": m.count("expert_feed_forward_length"),
    }


def _gguf_fields_2(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return _gguf_fields(m, config) | {
        "shared_expert_intermediate_size": m.count("expert_shared_feed_forward_length"),
        "norm_topk_prob": False,
    }


def _gguf_fields_3(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return _gguf_fields(m, config) | {"norm_topk_prob": True}


_GGUF_NAMES = MappingProxyType({
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
})  # fmt: skip

FAMILIES = (
    Family(
        architecture="Qwen2MoeForCausalLM",
        declare=qwen2_moe,
        gguf=Gguf(architecture="qwen2moe", fields=_gguf_fields_2, names=_GGUF_NAMES),
    ),
    Family(
        architecture="Qwen3MoeForCausalLM",
        declare=qwen3_moe,
        gguf=Gguf(architecture="qwen3moe", fields=_gguf_fields_3, names=_GGUF_NAMES),
    ),
)
