"""StableLM 2, Phi 1 to 2 and StarCoder 2: layer norms with biases, heads turned in part, a gate or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.common import Layout, block, decoder, gqa, head_size, mlp, plain_mlp, window_of
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.arch.rope import read_rope

STABLELM = Layout(
    eps="layer_norm_eps",
    center=True,
    bias=True,
    qk_norm=("self_attn.q_layernorm.norms.{}", "self_attn.k_layernorm.norms.{}"),
)
PHI = Layout(
    norm="model.final_layernorm",
    out="self_attn.dense",
    up=("mlp.fc1",),
    down="mlp.fc2",
    eps="layer_norm_eps",
    center=True,
    bias=True,
)
STARCODER2 = Layout(up=("mlp.c_fc",), down="mlp.c_proj", eps="norm_epsilon", center=True, bias=True)


def stablelm(c: HfConfig) -> Decoder:
    head_dim = head_size(c)
    attention = gqa(
        c,
        STABLELM,
        rope=read_rope(c, head_dim=head_dim, partial=0.25),
        qkv_bias=c.boolean("use_qkv_bias", False),
        qk_norm="each" if c.boolean("qk_layernorm", False) else None,
    )
    layer = block(c, attention, mlp(c), STABLELM)
    if c.boolean("use_parallel_residual", False):
        layer = replace(layer, ffn_norm=None, parallel=True)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), STABLELM)


def phi(c: HfConfig) -> Decoder:
    c.refuse("qk_layernorm", because="norms of heads with biases are not supported")
    head_dim = head_size(c)
    rope = read_rope(c, head_dim=head_dim, partial=0.5)
    attention = gqa(c, PHI, rope=rope, qkv_bias=True, out_bias=True)
    layer = replace(block(c, attention, plain_mlp(c, PHI, bias=True), PHI), ffn_norm=None, parallel=True)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), PHI, head_bias=True)


def starcoder2(c: HfConfig) -> Decoder:
    bias = c.boolean("use_bias", True)
    window = window_of(c)
    attention = gqa(c, STARCODER2, window=window, qkv_bias=bias, out_bias=bias)
    layer = block(c, attention, plain_mlp(c, STARCODER2, bias=bias), STARCODER2)
    c.ignore("activation_function", "layer_norm_epsilon", "scale_attn_weights")  # of what it comes from
    c.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    c.must("norm_type", "layer_norm")
    c.must("mlp_type", "default")
    return decoder(c, [layer] * c.integer("num_hidden_layers"), STARCODER2, tied=True)


def _stablelm_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "layer_norm_eps": m.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": bool(m.get("use_parallel_residual")),
        "use_qkv_bias": "blk.0.attn_q.bias" in m.gguf.tensors,
    }


def _phi_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    epsilon = m.number("attention.layer_norm_epsilon")
    return rope_fields(m, config) | {"layer_norm_eps": epsilon, "hidden_act": "gelu_new"}


def _starcoder2_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "norm_epsilon": m.number("attention.layer_norm_epsilon"),
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": "blk.0.attn_q.bias" in m.gguf.tensors,
        "sliding_window": m.get("attention.sliding_window") or None,
    }


FAMILIES = (
    Family(
        architecture="StableLmForCausalLM",
        declare=stablelm,
        gguf=Gguf(architecture="stablelm", fields=_stablelm_fields),
    ),
    Family(
        architecture="PhiForCausalLM",
        declare=phi,
        gguf=Gguf(
            architecture="phi2",
            fields=_phi_fields,
            names={"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
            outer={"output_norm": "model.final_layernorm"},
        ),
    ),
    Family(
        architecture="Starcoder2ForCausalLM",
        declare=starcoder2,
        gguf=Gguf(
            architecture="starcoder2",
            fields=_starcoder2_fields,
            names={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        ),
    ),
)
