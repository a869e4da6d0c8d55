"""Mamba-2: states and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sapwood.arch.families.common import ACTIVATIONS, Layout, decoder
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder, Linear, Norm, Part
from sapwood.arch.recurrent import Conv, Mamba2, PerHead, Skip
from sapwood.base.errors import ModelError

FAR = 2**17
"""As many positions as are offered where a config names none: such models have no limit of their own."""
LAYOUT = Layout(
    embed="backbone.embeddings",
    block="backbone.layers.{}.",
    norm="backbone.norm_f",
    mixer_norm="norm",
    eps="layer_norm_epsilon",
)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What a family's config calls the sizes of its mixers, and what it has where that is not said."""

    heads: str = "mamba_n_heads"
    head_dim: str = "mamba_d_head"
    groups: str = "mamba_n_groups"
    state: str = "mamba_d_state"
    width: str = "mamba_d_conv"
    bias: str = "mamba_proj_bias"
    conv_bias: str = "mamba_conv_bias"
    at: str = "mamba."


def mixer(c: HfConfig, fields: Fields, eps: float) -> Mamba2:
    """Mamba-2's mixer; its outputs are normed in as many groups as share keys."""
    hidden, heads, groups = c.integer("hidden_size"), c.integer(fields.heads), c.integer(fields.groups, 1)
    dim, state = c.integer(fields.head_dim), c.integer(fields.state)
    if heads % groups:
        raise ModelError(f"config.json: {fields.heads} ({heads}) is no multiple of {fields.groups} ({groups}).")
    at, bias, inner = fields.at, c.boolean(fields.bias, False), heads * dim
    wide, shared = Part(f"{at}in_proj", inner, dim), Part(f"{at}in_proj", groups * state, state)
    c.ignore("time_step_rank", "time_step_min", "time_step_max", "time_step_floor")  # of training
    return Mamba2(
        num_heads=heads,
        head_dim=dim,
        num_groups=groups,
        state_size=state,
        inp=Linear(hidden, (wide, wide, shared, shared, Part(f"{at}in_proj", heads)), "out", bias=bias),
        conv=Conv(f"{at}conv1d", (wide, shared, shared), c.integer(fields.width, 4), c.boolean(fields.conv_bias, True)),
        dt_bias=PerHead(f"{at}dt_bias", heads),
        a_log=PerHead(f"{at}A_log", heads),
        d=PerHead(f"{at}D", heads),
        norm=Norm(f"{at}norm", inner, eps, groups=groups),
        out=Linear(inner, (Part(f"{at}out_proj", hidden),), "in", unit=dim, bias=bias),
        limits=c.bounds("time_step_limit", (0.0, math.inf)),
    )


def mamba2(c: HfConfig) -> Decoder:
    fields = Fields(
        heads="num_heads",
        head_dim="head_dim",
        groups="n_groups",
        state="state_size",
        width="conv_kernel",
        bias="use_bias",
        conv_bias="use_conv_bias",
        at="mixer.",
    )
    if c.choice("hidden_act", ACTIVATIONS, "silu") != "silu":
        raise ModelError("config.json: hidden_act must be silu in this family.")
    c.ignore("expand", "chunk_size", "rescale_prenorm_residual", "residual_in_fp32")
    c.ignore("intermediate_size", "num_attention_heads", "num_key_value_heads")  # of nothing that there is here
    norm = LAYOUT.normed(c, LAYOUT.mixer_norm)
    block = Block(mixer_norm=norm, mixer=mixer(c, fields, norm.eps), ffn_norm=None, ffn=Skip())
    return decoder(c, [block] * c.integer("num_hidden_layers"), LAYOUT, max_positions=FAR)


FAMILIES = (Family(architecture="Mamba2ForCausalLM", declare=mamba2),)
