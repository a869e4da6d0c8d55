"""MiniCPM 3: latent attention, and MiniCPM's multipliers."""

from __future__ import annotations

from sapwood.arch.families.deepseek import latent_attention
from sapwood.arch.families.granite import by_depth
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder


def minicpm3(c: HfConfig) -> Decoder:
    c.assume(v_head_dim=c.integer("hidden_size") // c.integer("num_attention_heads"))
    return by_depth(c, latent_attention(c, interleaved=False))


FAMILIES = (Family(architecture="MiniCPM3ForCausalLM", declare=minicpm3),)
