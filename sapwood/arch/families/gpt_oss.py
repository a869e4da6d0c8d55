"""gpt-oss: experts with biases and a clamped gate, and attention whose heads may look away, at all or at a window in turn."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.experts import Experts, Stack
from sapwood.arch.families.common import SLIDING, block, decoder, every, gqa, head_size
from sapwood.arch.families.mixture import num_experts
from sapwood.arch.family import Family
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
    """Gate and up take turns, output by output, in one tensor for all experts; inputs come first."""
    c.must("hidden_act", "silu")
    c.must("swiglu_limit", 7.0)
    c.must("swiglu_alpha", 1.702)
    hidden, inner, count = c.integer("hidden_size"), c.integer("intermediate_size"), num_experts(c)
    one = Part("mlp.experts.gate_up_proj", inner, turn=1)
    gate_up = Linear(hidden, (one, one), "out", bias=True, transposed=True)
    down = Linear(inner, (Part("mlp.experts.down_proj", hidden),), "in", bias=True, transposed=True)
    return Experts(
        router=Linear(hidden, (Part("mlp.router", count),), None, bias=True),
        selection=Selection(c.integer("num_experts_per_tok"), renormalised=True),
        gate_up=Stack(count, gate_up, bare=True),
        down=Stack(count, down, bare=True),
        activation="swiglu_clamped",
    )


FAMILIES = (Family(architecture="GptOssForCausalLM", declare=gpt_oss),)
