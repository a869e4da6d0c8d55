"""Bamba: Mamba-2, and some layers of attention, half of whose heads is turned."""

from __future__ import annotations

from sapwood.arch.families.common import Layout, block, decoder, gqa, head_size, mlp
from sapwood.arch.families.mamba2 import Fields, mixer
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.arch.rope import read_rope

_LAYOUT = Layout(
    norm="model.final_layernorm",
    ffn_norm="pre_ff_layernorm",
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
)


def bamba(c: HfConfig) -> Decoder:
    c.ignore("mamba_expand", "mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient", "layer_types")
    c.ignore("layers_block_type")  # which follows from
    attends = c.integers("attn_layer_indices") if c.has("attn_layer_indices") else ()
    bias = c.boolean("attention_bias", False)
    rope = read_rope(c, head_dim=head_size(c), partial=0.5)
    attention = gqa(c, _LAYOUT, rope=rope, qkv_bias=bias, out_bias=bias)
    mamba = mixer(c, Fields(), c.number("rms_norm_eps"))
    ffn = mlp(c, _LAYOUT, bias=c.boolean("mlp_bias", False))
    blocks = [
        block(c, attention if layer in attends else mamba, ffn, _LAYOUT)
        for layer in range(c.integer("num_hidden_layers"))
    ]
    return decoder(c, blocks, _LAYOUT)


FAMILIES = (Family(architecture="BambaForCausalLM", declare=bamba),)
