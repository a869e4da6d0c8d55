"""Nemotron-H (dense): blocks of one thing each, Mamba-2, attention without positions, or an MLP of squared relu."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sapwood.arch.families.common import ACTIVATIONS, Layout, decoder, gqa, plain_mlp
from sapwood.arch.families.mamba2 import Fields, mixer
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Block, Decoder
from sapwood.arch.recurrent import Skip
from sapwood.base.errors import ModelError

_WORDS: Mapping[str, str] = MappingProxyType({
    "M": "mamba", "mamba": "mamba", "linear_attention": "mamba", "-": "mlp", "mlp": "mlp",
    "*": "attention", "attention": "attention", "full_attention": "attention",
})  # fmt: skip
_LAYOUT = Layout(
    embed="backbone.embeddings",
    block="backbone.layers.{}.",
    norm="backbone.norm_f",
    mixer_norm="norm",
    qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
    out="mixer.o_proj",
    up=("mixer.up_proj",),
    down="mixer.down_proj",
    eps="layer_norm_epsilon",
)
_FIELDS = Fields(
    heads="mamba_num_heads",
    head_dim="mamba_head_dim",
    groups="n_groups",
    state="ssm_state_size",
    width="conv_kernel",
    bias="use_bias",
    conv_bias="use_conv_bias",
    at="mixer.",
)
_TRAINING = ("expand", "chunk_size", "rescale_prenorm_residual", "residual_in_fp32", "num_logits_to_keep")
_RUNNING = ("use_mamba_kernels", "mamba_ssm_cache_dtype", "mamba_proj_bias", "sliding_window", "num_query_groups")
_EXPERTS = (
    "n_routed_experts", "n_shared_experts", "moe_intermediate_size", "moe_shared_expert_intermediate_size",
    "moe_latent_size", "moe_shared_expert_overlap", "num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group",
    "norm_topk_prob", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
)  # fmt: skip


def nemotron_h(c: HfConfig) -> Decoder:
    c.refuse("attention_bias", "num_nextn_predict_layers", because="no model of this family has it")
    c.ignore(*_TRAINING, *_RUNNING, *_EXPERTS)
    if c.choice("mamba_hidden_act", ACTIVATIONS, "silu") != "silu":
        raise ModelError("config.json: mamba_hidden_act must be silu in this family.")
    norm = _LAYOUT.normed(c, _LAYOUT.mixer_norm)
    limits = c.number("time_step_min", 0.001), math.inf
    mamba = replace(mixer(c, _FIELDS, norm.eps), limits=limits)
    mlp = plain_mlp(
        c,
        _LAYOUT,
        activation=c.choice("mlp_hidden_act", ACTIVATIONS, "relu2"),
        bias=c.boolean("mlp_bias", False),
    )
    blocks = {
        "mamba": Block(mixer_norm=norm, mixer=mamba, ffn_norm=None, ffn=Skip()),
        "attention": Block(mixer_norm=norm, mixer=gqa(c, _LAYOUT, rope=STILL), ffn_norm=None, ffn=Skip()),
        "mlp": Block(mixer_norm=None, mixer=Skip(), ffn_norm=norm, ffn=mlp),
    }
    return decoder(c, [blocks[kind] for kind in _layers(c)], _LAYOUT)


def _layers(c: HfConfig) -> tuple[str, ...]:
    """From a list of words, or a word of letters."""
    c.ignore("num_hidden_layers", "hybrid_override_pattern", "layers_block_type")
    kinds = c.strings("layers_block_type") if c.has("layers_block_type") else tuple(c.string("hybrid_override_pattern"))
    if not kinds or not {*kinds} <= {*_WORDS}:
        raise ModelError(
            f"config.json: layers_block_type must be words of {', '.join(_WORDS)} (no mixtures of experts yet), got {list(kinds)}."
        )
    return tuple(_WORDS[kind] for kind in kinds)


FAMILIES = (Family(architecture="NemotronHForCausalLM", declare=nemotron_h),)
