"""Cohere's Command R and Aya (1), Command R7B and A (2): attention and MLP side by side behind one layer norm without bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.common import SLIDING, Layout, block, decoder, every, gqa, head_size, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Block, Decoder
from sapwood.arch.rope import read_rope

COHERE = Layout(eps="layer_norm_eps", center=True)


def cohere(c: HfConfig) -> Decoder:
    return _decoder(c, [_block(c, None, turned=True)] * c.integer("num_hidden_layers"))


def cohere2(c: HfConfig) -> Decoder:
    """Layers without a window turn nothing."""
    kinds = every(c, c.integer("sliding_window_pattern", 4))
    c.must("position_embedding_type", "rope_gptj")
    c.must("rotary_pct", 1.0)
    for name in ("use_embedding_sharing", "use_gated_activation", "use_parallel_block"):
        c.must(name, True)
    c.ignore("order_of_interleaved_layers", "use_parallel_embedding", "layer_switch")  # layer_types say it
    window = c.integer("sliding_window")
    layers = {True: _block(c, window, turned=True), False: _block(c, None, turned=False)}
    return _decoder(c, [layers[kind == SLIDING] for kind in kinds])


def _block(c: HfConfig, window: int | None, *, turned: bool) -> Block:
    bias = c.boolean("attention_bias", False)
    head_dim = head_size(c)
    rope = replace(read_rope(c, head_dim=head_dim), interleaved=True)
    attention = gqa(
        c,
        COHERE,
        window=window,
        rope=rope if turned else STILL,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="each" if c.boolean("use_qk_norm", False) else None,
    )
    return replace(block(c, attention, mlp(c), COHERE), ffn_norm=None, parallel=True)


def _decoder(c: HfConfig, blocks: list[Block]) -> Decoder:
    return replace(decoder(c, blocks, COHERE, tied=True), logit_scale=c.number("logit_scale", 0.0625))


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {
        "layer_norm_eps": m.number("attention.layer_norm_epsilon"),
        "logit_scale": m.number("logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in m.gguf.tensors,
    }


def _gguf_fields2(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return _gguf_fields(m, config) | {"sliding_window": m.count("attention.sliding_window")}


FAMILIES = (
    Family(
        architecture="CohereForCausalLM",
        declare=cohere,
        gguf=Gguf(architecture="command-r", fields=_gguf_fields),
    ),
    Family(
        architecture="Cohere2ForCausalLM",
        declare=cohere2,
        gguf=Gguf(architecture="cohere2", fields=_gguf_fields2),
    ),
)
