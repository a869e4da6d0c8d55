"""Falcon-H1: Mamba-2 and attention side by side in each layer, and multipliers of what goes in and comes out."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.common import Layout, block, decoder, gqa, mlp
from sapwood.arch.families.mamba2 import Fields, mixer
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.multiplied import Multiplied
from sapwood.arch.parts import Attention, Decoder, Linear, Mlp
from sapwood.arch.recurrent import Mamba2, Together

_LAYOUT = Layout(
    norm="model.final_layernorm",
    ffn_norm="pre_ff_layernorm",
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
)


def falcon_h1(c: HfConfig) -> Decoder:
    c.refuse("attention_bias", "mamba_proj_bias", "projectors_bias", because="multipliers act before biases")
    c.ignore("mamba_d_ssm", "mamba_expand", "mamba_chunk_size", "mamba_use_mlp", "num_logits_to_keep", "layer_types")
    c.ignore("layers_block_type", "attn_layer_indices", "attn_rotary_emb", "rope_scaling")
    inside, outside = c.number("attention_in_multiplier", 1.0), c.number("attention_out_multiplier", 1.0)
    both = Together(_mamba(c), _attention(c, inside), (c.number("ssm_out_multiplier", 1.0), inside * outside))
    layer = block(c, both, _mlp(c), _LAYOUT)
    found = decoder(
        c, [layer] * c.integer("num_hidden_layers"), _LAYOUT, embed_scale=c.number("embedding_multiplier", 1.0)
    )
    return replace(found, logit_scale=c.number("lm_head_multiplier", 1.0))


def _attention(c: HfConfig, inside: float) -> Attention:
    """What multiplies queries and keys multiplies scores; what multiplies values is left to whoever takes what comes out."""
    found = gqa(c, _LAYOUT)
    return replace(found, scale=found.scale * inside**2 * c.number("key_multiplier", 1.0))


def _mamba(c: HfConfig) -> Mamba2:
    found, inside = mixer(c, Fields(), c.number("rms_norm_eps")), c.number("ssm_in_multiplier", 1.0)
    factors = _numbers(c, "ssm_multipliers", 5)
    assert isinstance(found.inp, Linear), "multiplied here alone"
    last = c.boolean("mamba_norm_before_gate", True)
    found = replace(found, inp=Multiplied(found.inp, tuple(inside * factor for factor in factors)), gated_last=last)
    return found if c.boolean("mamba_rms_norm", False) else replace(found, norm=None)


def _mlp(c: HfConfig) -> Mlp:
    """What multiplies the sum may as well multiply each of the products that it is of."""
    found = mlp(c, _LAYOUT, bias=c.boolean("mlp_bias", False))
    assert isinstance(found.gate_up, Linear), "multiplied here alone"
    return replace(found, gate_up=Multiplied(found.gate_up, _numbers(c, "mlp_multipliers", 2)))


def _numbers(c: HfConfig, name: str, count: int) -> tuple[float, ...]:
    return c.numbers(name, count) if c.has(name) else (1.0,) * count


FAMILIES = (Family(architecture="FalconH1ForCausalLM", declare=falcon_h1),)
