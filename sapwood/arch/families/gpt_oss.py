"""gpt-oss: experts with biases and a clamped gate, and attention whose heads may look away, at all or at a window in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sapwood.arch.experts import Experts, Stack
from sapwood.arch.families.common import SLIDING, block, decoder, every, gqa, head_size
from sapwood.arch.families.mixture import num_experts
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Decoder, Linear, Part
from sapwood.arch.rope import read_rope
from sapwood.arch.sinks import Sinks
from sapwood.base.selection import Selection


def gpt_oss(c: HfConfig) -> Decoder:
    c.ignore("experts_per_token", "initial_context_length", "router_aux_loss_coef", "output_router_logits")
    ffn = _experts(c)
    return decoder(c, [block(c, _attention(c, kind), ffn) for kind in every(c, 2)])


def _attention(c: HfConfig, kind: str) -> Attention:
    bias = c.boolean("attention_bias", True)
    window = c.integer("sliding_window")
    rope = read_rope(c, head_dim=head_size(c), theta=150000.0)
    found = gqa(c, window=window if kind == SLIDING else None, rope=rope, qkv_bias=bias, out_bias=bias)
    return replace(found, sinks=Sinks("self_attn.sinks", found.num_heads))


def _experts(c: HfConfig) -> Experts:
    """Gate and up take turns, output by output, in one tensor for all experts, whose inputs come first; in GGUF files they lie apart."""
    c.must("hidden_act", "silu")
    c.must("swiglu_limit", 7.0)
    c.must("swiglu_alpha", 1.702)
    hidden, inner, count = c.integer("hidden_size"), c.integer("intermediate_size"), num_experts(c)
    one = Part("mlp.experts.gate_up_proj", inner, turn=1)
    gate_up = Linear(hidden, (one, one), "out", bias=True, transposed=True)
    down = Linear(inner, (Part("mlp.experts.down_proj", hidden),), "in", bias=True, transposed=True)
    apart = tuple(Part(f"mlp.experts.{{}}.{name}", inner) for name in ("gate_proj", "up_proj"))
    return Experts(
        router=Linear(hidden, (Part("mlp.router", count),), None, bias=True),
        selection=Selection(c.integer("num_experts_per_tok"), renormalised=True),
        gate_up=Stack(count, gate_up, bare=True, other=Stack(count, replace(gate_up, parts=apart, transposed=False))),
        down=Stack(count, down, bare=True, other=Stack(count, _apart(down))),
        activation="swiglu_clamped",
    )


def _apart(down: Linear) -> Linear:
    part = replace(down.parts[0], name="mlp.experts.{}.down_proj")
    return replace(down, parts=(part,), transposed=False)


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    """A window in every second layer, from the first on; the bounds of YaRN's ramp are not rounded."""
    rope = rope_fields(m, config)
    if rope["rope_scaling"] is not None:
        rope["rope_scaling"] |= {"truncate": False}
    return rope | {
        "num_local_experts": m.count("expert_count"),
        "num_experts_per_tok": m.count("expert_used_count"),
        "intermediate_size": m.count("expert_feed_forward_length"),
        "sliding_window": m.count("attention.sliding_window"),
    }


_GGUF_NAMES = MappingProxyType({
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
})  # fmt: skip

FAMILIES = (
    Family(
        architecture="GptOssForCausalLM",
        declare=gpt_oss,
        gguf=Gguf(architecture="gpt-oss", fields=_gguf_fields, names=_GGUF_NAMES),
    ),
)
