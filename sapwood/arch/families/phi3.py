"""Phi-3 and Phi-4 (dense): Llama with fused projections in the checkpoint and, in some, partly rotated heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.arch.families.common import Layout, block, decoder, gqa, mlp, window_of
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder

PHI3 = Layout(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))


def phi3(c: HfConfig) -> Decoder:
    c.refuse("attention_bias", because="Phi-3 checkpoints have no biases")
    for name in ("full_attn_mod", "interpolate_factor"):
        c.must(name, 1)
    window = window_of(c)
    layer = block(c, gqa(c, PHI3, window=window), mlp(c, PHI3))
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def _gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {"sliding_window": m.get("attention.sliding_window") or None}


FAMILIES = (
    Family(
        architecture="Phi3ForCausalLM",
        declare=phi3,
        gguf=Gguf(architecture="phi3", fields=_gguf_fields, names={"ffn_up": "mlp.gate_up_proj"}),
    ),
)
