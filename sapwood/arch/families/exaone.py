"""EXAONE 3 and 3.5 (Llama under other names), 4 (norms after; layers without a window turn nothing where others have one) and
K-EXAONE (experts, and norms before)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.common import (
    FULL,
    SLIDING,
    Layout,
    block,
    block_normed_after,
    decoder,
    gqa,
    layer_types,
    mlp,
)
from sapwood.arch.families.sigmoid_moe import exaone_moe
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys, rope_fields
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Attention, Decoder

EXAONE = Layout(
    embed="transformer.wte",
    block="transformer.h.{}.",
    norm="transformer.ln_f",
    mixer_norm="ln_1",
    ffn_norm="ln_2",
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    out="attn.attention.out_proj",
    up=("mlp.c_fc_0", "mlp.c_fc_1"),
    down="mlp.c_proj",
)


def exaone(c: HfConfig) -> Decoder:
    c.spelt(num_hidden_layers="num_layers", rms_norm_eps="layer_norm_epsilon", hidden_act="activation_function")
    layer = block(c, gqa(c, EXAONE), mlp(c, EXAONE), EXAONE)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), EXAONE)


def exaone4(c: HfConfig) -> Decoder:
    return decoder(c, [block_normed_after(c, attention, mlp(c)) for attention in _attentions(c)])


def k_exaone(c: HfConfig) -> Decoder:
    """Experts, and norms before."""
    return replace(exaone_moe(c, _attentions(c)), aside=("mtp.",))  # what predicts more tokens than one


def _attentions(c: HfConfig) -> list[Attention]:
    """Of each layer."""
    slides, num_layers = c.has("sliding_window"), c.integer("num_hidden_layers")
    c.ignore("sliding_window_pattern")  # layer_types say it, but for the last kind of pattern
    kinds = layer_types(c, [SLIDING if slides and (i + 1) % 4 else FULL for i in range(num_layers)])
    window = c.integer("sliding_window") if slides else None
    layers = {
        SLIDING: gqa(c, window=window, qk_norm="heads"),
        FULL: gqa(c, rope=STILL if slides else None, qk_norm="heads"),
    }
    return [layers[kind] for kind in kinds]


def _exaone4_fields(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any]:
    slides = m.layers("attention.sliding_window_pattern")
    kinds = None if slides is None else [SLIDING if slide else FULL for slide in slides]
    return rope_fields(m, config) | {
        "sliding_window": m.get("attention.sliding_window") or None,
        "layer_types": kinds,
    }


FAMILIES = (
    Family(architecture="ExaoneMoeForCausalLM", declare=k_exaone),
    Family(architecture="ExaoneMoEForCausalLM", declare=k_exaone),
    Family(
        architecture="ExaoneForCausalLM",
        declare=exaone,
        gguf=Gguf(
            architecture="exaone",
            fields=rope_fields,
            names={
                "attn_norm": "ln_1",
                "ffn_norm": "ln_2",
                "attn_q": "attn.attention.q_proj",
                "attn_k": "attn.attention.k_proj",
                "attn_v": "attn.attention.v_proj",
                "attn_output": "attn.attention.out_proj",
                "ffn_gate": "mlp.c_fc_0",
                "ffn_up": "mlp.c_fc_1",
                "ffn_down": "mlp.c_proj",
            },
            outer={"token_embd": "transformer.wte", "output_norm": "transformer.ln_f"},
            block="transformer.h.{}.",
        ),
    ),
    Family(
        architecture="Exaone4ForCausalLM",
        declare=exaone4,
        gguf=Gguf(
            architecture="exaone4",
            fields=_exaone4_fields,
            names={
                "post_attention_norm": "post_attention_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
        ),
    ),
)
