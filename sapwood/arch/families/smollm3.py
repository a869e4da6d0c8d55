"""SmolLM3: Llama, some of whose layers turn nothing."""

from __future__ import annotations

from sapwood.arch.families.common import FULL, SLIDING, block, decoder, gqa, layer_types, mlp
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Block, Decoder


def smollm3(c: HfConfig) -> Decoder:
    num_layers, bias = c.integer("num_hidden_layers"), c.boolean("attention_bias", False)
    interval = c.integer("no_rope_layer_interval", 4)
    turned = c.flags("no_rope_layers", num_layers, [bool((i + 1) % interval) for i in range(num_layers)])
    slides = c.boolean("use_sliding_window", False) and c.has("sliding_window")
    kinds = layer_types(c, [SLIDING if slides and not one else FULL for one in turned])

    def layer(kind: str, turns: bool) -> Block:
        window = c.integer("sliding_window") if kind == SLIDING else None
        attention = gqa(c, window=window, rope=None if turns else STILL, qkv_bias=bias, out_bias=bias)
        return block(c, attention, mlp(c, bias=c.boolean("mlp_bias", False)))

    c.ignore("sliding_window", "max_window_layers", "rope_theta", "rope_scaling", "rope_parameters")
    return decoder(c, [layer(*one) for one in zip(kinds, turned, strict=True)], tied=True)


FAMILIES = (
    Family(
        architecture="SmolLM3ForCausalLM",
        declare=smollm3,
        gguf=Gguf(architecture="smollm3", fields=rope_fields, paired=True),
    ),
)
