"""Qwen2 (and 2.5) and Qwen3, dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sapwood.arch.families.common import SLIDING, block, decoder, gqa, layer_types, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder


def qwen2(c: HfConfig) -> Decoder:
    return _qwen(c, qkv_bias=True, out_bias=False)


def qwen3(c: HfConfig) -> Decoder:
    bias = c.boolean("attention_bias", False)
    return _qwen(c, qkv_bias=bias, out_bias=bias, qk_norm="heads")


def _qwen(c: HfConfig, *, qkv_bias: bool, out_bias: bool, qk_norm: Literal["heads"] | None = None) -> Decoder:
    c.refuse(
        "dual_chunk_attention_config", because="attention in two chunks, for a million tokens, is another mechanism"
    )

    def layer(kind: str) -> Block:
        window = c.integer("sliding_window") if kind == SLIDING else None
        attention = gqa(c, window=window, qkv_bias=qkv_bias, out_bias=out_bias, qk_norm=qk_norm)
        return block(c, attention, mlp(c))

    return decoder(c, [layer(kind) for kind in _kinds(c)])


def _kinds(c: HfConfig) -> tuple[str, ...]:
    """Sliding layers, if any, are those from max_window_layers on; the fields say so even when switched off."""
    num_layers = c.integer("num_hidden_layers")
    sliding = c.boolean("use_sliding_window", False) and c.has("sliding_window")
    first = c.integer("max_window_layers", 28) if sliding else num_layers
    c.ignore("sliding_window", "max_window_layers")
    kinds = layer_types(c, ["full_attention" if i < first else SLIDING for i in range(num_layers)])
    return kinds if sliding else ("full_attention",) * num_layers


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    if m.count("attention.sliding_window", config["max_position_embeddings"]) < config["max_position_embeddings"]:
        raise m.wrong("attention.sliding_window", "which layers slide is not said, and sliding is not supported")
    return rope_fields(m, config)


FAMILIES = (
    Family(architecture="Qwen2ForCausalLM", declare=qwen2, gguf=Gguf(architecture="qwen2", fields=_gguf_fields)),
    Family(architecture="Qwen3ForCausalLM", declare=qwen3, gguf=Gguf(architecture="qwen3", fields=_gguf_fields)),
)
