"""Kin of Llama: Seed-OSS, ERNIE 4.5, Hunyuan (dense), Helium, CWM, Ministral."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sapwood.arch.families.common import FULL, SLIDING, Layout, block, decoder, gqa, head_size, layer_types, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Decoder, Rope
from sapwood.arch.rope import read_rope

HUNYUAN = Layout(qk_norm=("self_attn.query_layernorm", "self_attn.key_layernorm"))


def seed_oss(c: HfConfig) -> Decoder:
    attention = gqa(c, qkv_bias=c.boolean("attention_bias", True), out_bias=c.boolean("attention_out_bias", False))
    return _decoder(c, attention, bias=c.boolean("mlp_bias", False))


def ernie(c: HfConfig) -> Decoder:
    bias = c.boolean("use_bias", False)
    c.ignore("compression_ratio")
    return _decoder(c, gqa(c, rope=interleaved(c), qkv_bias=bias, out_bias=bias), bias=bias, tied=True)


def helium(c: HfConfig) -> Decoder:
    bias = c.boolean("attention_bias", False)
    return _decoder(c, gqa(c, rope=interleaved(c), qkv_bias=bias), bias=c.boolean("mlp_bias", False))


def hunyuan(c: HfConfig) -> Decoder:
    """Queries and keys are normed when they have been turned."""
    c.must("use_qk_norm", True)
    bias = c.boolean("attention_bias", False)
    attention = gqa(c, HUNYUAN, qkv_bias=bias, out_bias=bias, qk_norm="heads")
    return _decoder(c, replace(attention, late=True))


def windowed(c: HfConfig) -> Decoder:
    """Layers that slide in a pattern of their own."""
    slides, num_layers = c.has("sliding_window"), c.integer("num_hidden_layers")
    kinds = layer_types(c, _kinds(c, num_layers) if slides else [FULL] * num_layers)
    bias = c.boolean("mlp_bias", False)
    layers = {
        kind: block(c, gqa(c, window=c.integer("sliding_window") if kind == SLIDING else None), mlp(c, bias=bias))
        for kind in set(kinds)
    }
    return decoder(c, [layers[kind] for kind in kinds])


def _kinds(c: HfConfig, num_layers: int) -> Sequence[str]:
    """CWM's every fourth layer sees everything, of Ministral's none does."""
    cwm = c.strings("architectures") == ("CwmForCausalLM",)
    return [FULL if cwm and i % 4 == 0 else SLIDING for i in range(num_layers)]


def interleaved(c: HfConfig) -> Rope:
    head_dim = head_size(c)
    return replace(read_rope(c, head_dim=head_dim), interleaved=True)


def _decoder(c: HfConfig, attention: Attention, *, bias: bool = False, tied: bool = False) -> Decoder:
    return decoder(c, [block(c, attention, mlp(c, bias=bias))] * c.integer("num_hidden_layers"), tied=tied)


def _seed_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    tensors = m.gguf.tensors
    return rope_fields(m, config) | {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in tensors,
    }


def _ernie_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {"use_bias": "blk.0.attn_q.bias" in m.gguf.tensors}


FAMILIES = (
    Family(
        architecture="SeedOssForCausalLM",
        declare=seed_oss,
        gguf=Gguf(
            architecture="seed_oss",
            fields=_seed_fields,
            names={"post_attention_norm": "post_attention_layernorm"},
        ),
    ),
    Family(
        architecture="Ernie4_5ForCausalLM",
        declare=ernie,
        gguf=Gguf(architecture="ernie4_5", fields=_ernie_fields),
    ),
    Family(architecture="Ernie4_5_ForCausalLM", declare=ernie),
    Family(architecture="HeliumForCausalLM", declare=helium),
    Family(
        architecture="HunYuanDenseV1ForCausalLM",
        declare=hunyuan,
        gguf=Gguf(
            architecture="hunyuan-dense",
            fields=rope_fields,  # whose base has been multiplied already
            names={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        ),
    ),
    Family(architecture="CwmForCausalLM", declare=windowed),
    Family(architecture="MinistralForCausalLM", declare=windowed),
)
