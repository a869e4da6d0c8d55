"""Nemotron 3 and 4, Arcee and Jais 2: MLPs without a gate, of squared relu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.arch.families.common import Layout, block, decoder, gqa, head_size, plain_mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.arch.rope import read_rope

ARCEE = Layout(up=("mlp.up_proj",))
JAIS2 = Layout(up=("mlp.up_proj",), eps="layer_norm_eps", center=True, bias=True)
NEMOTRON = Layout(up=("mlp.up_proj",), eps="norm_eps", offset=1.0, center=True, bias=True)


def arcee(c: HfConfig) -> Decoder:
    return _decoder(c, ARCEE, partial=1.0)


def jais2(c: HfConfig) -> Decoder:
    return _decoder(c, JAIS2, partial=1.0)


def nemotron(c: HfConfig) -> Decoder:
    return _decoder(c, NEMOTRON, partial=0.5)


def _decoder(c: HfConfig, layout: Layout, *, partial: float) -> Decoder:
    bias = c.boolean("attention_bias", False)
    head_dim = head_size(c)
    rope = read_rope(c, head_dim=head_dim, partial=partial)
    attention = gqa(c, layout, rope=rope, qkv_bias=bias, out_bias=bias)
    layer = block(c, attention, plain_mlp(c, layout, bias=c.boolean("mlp_bias", False)), layout)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), layout)


def _arcee_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {"hidden_act": "relu2"}


def _nemotron_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return _arcee_fields(m, config) | {"norm_eps": m.number("attention.layer_norm_epsilon")}


FAMILIES = (
    Family(
        architecture="ArceeForCausalLM",
        declare=arcee,
        gguf=Gguf(architecture="arcee", fields=_arcee_fields, paired=True),
    ),
    Family(architecture="Jais2ForCausalLM", declare=jais2),
    Family(
        architecture="NemotronForCausalLM",
        declare=nemotron,
        gguf=Gguf(architecture="nemotron", fields=_nemotron_fields, norm_offset=1.0),
    ),
)
