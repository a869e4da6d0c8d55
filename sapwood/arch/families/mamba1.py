"""Mamba, Falcon-Mamba, and Jamba (with experts at steps, and some layers of attention without positions)."""

from __future__ import annotations

import math
from dataclasses import replace

from sapwood.arch.experts import Experts
from sapwood.arch.families.common import ACTIVATIONS, Layout, block, decoder, gqa, mlp
from sapwood.arch.families.mamba2 import FAR
from sapwood.arch.families.mamba2 import LAYOUT as MAMBA
from sapwood.arch.families.mixture import Names, experts
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Block, Decoder, Linear, Mlp, Norm, Part
from sapwood.arch.recurrent import Conv, Mamba1, PerHead, Skip
from sapwood.base.errors import ModelError
from sapwood.base.selection import Selection

_JAMBA = Layout(
    norm="model.final_layernorm",
    ffn_norm="pre_ff_layernorm",
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
)
_INNER = ("dt", "b", "c")
_EXPERTS = Names(at="feed_forward", router="router")


def mamba(c: HfConfig) -> Decoder:
    return _states_alone(c, _mamba(c))


def falcon_mamba(c: HfConfig) -> Decoder:
    """What the selection yields is normed, without weights."""
    found, eps = _mamba(c), c.number("mixer_rms_eps", 1e-6)
    few, state = Norm("", found.step.inp, eps), Norm("", found.state_size, eps)
    return _states_alone(c, replace(found, step_norm=few, b_norm=state, c_norm=state))


def jamba(c: HfConfig) -> Decoder:
    c.ignore(
        "use_mamba_kernels",
        "use_mambapy",
        "use_associative_scan",
        "num_logits_to_keep",
        "mamba_expand",
        "sliding_window",
    )
    eps = c.number("rms_norm_eps")
    mixer = _mixer(
        c,
        "mamba.",
        channels=c.integer("mamba_expand", 2) * c.integer("hidden_size"),
        state=c.integer("mamba_d_state", 16),
        width=c.integer("mamba_d_conv", 4),
        rank="mamba_dt_rank",
        bias=c.boolean("mamba_proj_bias", False),
        conv_bias=c.boolean("mamba_conv_bias", True),
    )
    sizes = mixer.step.inp, mixer.state_size, mixer.state_size
    norms = [Norm(f"mamba.{name}_layernorm", size, eps) for name, size in zip(_INNER, sizes, strict=True)]
    mixer = replace(mixer, step_norm=norms[0], b_norm=norms[1], c_norm=norms[2])
    attention = gqa(c, rope=STILL)
    sparse, plain = _sparse(c), mlp(c, _JAMBA)
    layers = range(c.integer("num_hidden_layers"))
    attends, has = _at(c, "attn_layer", 8, 4), _at(c, "expert_layer", 2, 1)
    blocks = [block(c, attention if i in attends else mixer, sparse if i in has else plain, _JAMBA) for i in layers]
    return decoder(c, blocks, _JAMBA)


def _at(c: HfConfig, name: str, period: int, offset: int) -> range:
    """Every so many-th layer, from one on."""
    first, step = c.count(f"{name}_offset", offset), c.integer(f"{name}_period", period)
    if first >= step:
        raise ModelError(f"config.json: {name}_offset ({first}) must be less than {name}_period ({step}).")
    return range(first, c.integer("num_hidden_layers"), step)


def _sparse(c: HfConfig) -> Experts | Mlp:
    if c.integer("num_experts", 16) == 1:
        c.ignore("num_experts_per_tok", "router_aux_loss_coef", "output_router_logits")
        return mlp(c, _JAMBA)
    selection = Selection(c.integer("num_experts_per_tok", 2))
    return experts(c, _EXPERTS, inner=c.integer("intermediate_size"), selection=selection)


def _states_alone(c: HfConfig, mixer: Mamba1) -> Decoder:
    if c.choice("hidden_act", ACTIVATIONS, "silu") != "silu":
        raise ModelError("config.json: hidden_act must be silu in this family.")
    layer = Block(mixer_norm=MAMBA.normed(c, MAMBA.mixer_norm), mixer=mixer, ffn_norm=None, ffn=Skip())
    return decoder(c, [layer] * c.integer("num_hidden_layers"), MAMBA, max_positions=FAR, tied=True)


def _mamba(c: HfConfig) -> Mamba1:
    c.ignore(
        "expand",
        "residual_in_fp32",
        "rescale_prenorm_residual",
        "use_mambapy",
        "use_associative_scan",
        "use_falcon_mambapy",
    )
    c.ignore(
        "time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor"
    )  # of training
    c.ignore("d_inner", "d_model", "n_layer", "ssm_cfg", "rms_norm", "fused_add_norm", "pad_vocab_size_multiple")
    return _mixer(
        c,
        "mixer.",
        channels=c.integer("intermediate_size", c.integer("expand", 2) * c.integer("hidden_size")),
        state=c.integer("state_size", 16),
        width=c.integer("conv_kernel", 4),
        rank="time_step_rank",
        bias=c.boolean("use_bias", False),
        conv_bias=c.boolean("use_conv_bias", True),
    )


def _mixer(
    c: HfConfig, at: str, *, channels: int, state: int, width: int, rank: str, bias: bool, conv_bias: bool
) -> Mamba1:
    hidden = c.integer("hidden_size")
    few = math.ceil(hidden / 16) if c.field(rank) in (None, "auto") else c.integer(rank)
    whole = Part(f"{at}in_proj", channels)
    selected = tuple(Part(f"{at}x_proj", size) for size in (few, state, state))
    return Mamba1(
        channels=channels,
        state_size=state,
        inp=Linear(hidden, (whole, whole), "out", bias=bias),
        conv=Conv(f"{at}conv1d", (Part("", channels),), width, conv_bias),
        select=Linear(channels, selected, "in"),
        step=Linear(few, (Part(f"{at}dt_proj", channels),), "out", bias=True),
        a_log=PerHead(f"{at}A_log", channels, state),
        d=PerHead(f"{at}D", channels),
        out=Linear(channels, (Part(f"{at}out_proj", hidden),), "in", bias=bias),
    )


FAMILIES = (
    Family(architecture="MambaForCausalLM", declare=mamba),
    Family(architecture="FalconMambaForCausalLM", declare=falcon_mamba),
    Family(architecture="JambaForCausalLM", declare=jamba),
)
