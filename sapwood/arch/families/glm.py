"""GLM-4 of 2024 and 2025 (dense): half of each head turned, by pairs side by side; the later one with norms after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.common import LLAMA, Layout, block, decoder, gqa, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder
from sapwood.arch.rope import read_rope

GLM = Layout(up=("mlp.gate_up_proj",))


def glm(c: HfConfig) -> Decoder:
    return decoder(c, [_block(c)] * c.integer("num_hidden_layers"))


def glm4(c: HfConfig) -> Decoder:
    layer = replace(
        _block(c),
        after_mixer=LLAMA.normed(c, "post_self_attn_layernorm"),
        after_ffn=LLAMA.normed(c, "post_mlp_layernorm"),
    )
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def _block(c: HfConfig) -> Block:
    rope = read_rope(c, head_dim=c.integer("head_dim", 128), partial=0.5)
    attention = gqa(c, rope=replace(rope, interleaved=True), qkv_bias=c.boolean("attention_bias", True))
    return block(c, attention, mlp(c, GLM))


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {"attention_bias": "blk.0.attn_q.bias" in m.gguf.tensors}


FAMILIES = (
    Family(architecture="GlmForCausalLM", declare=glm),
    Family(
        architecture="Glm4ForCausalLM",
        declare=glm4,
        gguf=Gguf(
            architecture="glm4",
            fields=_gguf_fields,
            names={
                "post_attention_norm": "post_self_attn_layernorm",
                "post_ffw_norm": "post_mlp_layernorm",
                "ffn_up": "mlp.gate_up_proj",
            },
        ),
    ),
)
