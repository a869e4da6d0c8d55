"""A family of another package: Llama's mathematics with a config and GGUF names of its own. And a way to call tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.arch.families.common import block, decoder, gqa, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Activation, Decoder
from sapwood.text.parsers.formats import Object, Reasoning, Section, ToolFormat

PEELS: Mapping[str, Activation] = {"smooth": "silu", "rough": "gelu_tanh"}


def banana(c: HfConfig) -> Decoder:
    c.ignore("hidden_act", "attention_bias", "mlp_bias")
    layer = block(c, gqa(c), mlp(c, activation=c.choice("peel", PEELS)))
    return decoder(c, [layer] * c.integer("num_hidden_layers"))


def gguf_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    return rope_fields(m, config) | {"peel": m.get("peel", "smooth")}


FAMILY = Family(
    architecture="BananaForCausalLM",
    declare=banana,
    gguf=Gguf(architecture="banana", fields=gguf_fields, names={"ffn_skin": "mlp.gate_proj"}),
)
TOOLS = ToolFormat(sections=(Section(open="<banana>", shape=Object(), close="</banana>"),), signs=("<banana>",))
THOUGHTS = Reasoning(begin="<ripen>", end="</ripen>", signs=("<ripen>",))
