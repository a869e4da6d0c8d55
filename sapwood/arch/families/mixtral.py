"""Mixtral: Mistral whose feed-forwards are experts."""

from __future__ import annotations

from sapwood.arch.families.common import block, decoder, gqa, window_of
from sapwood.arch.families.mixture import MIXTRAL, experts
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.base.selection import Selection


def mixtral(c: HfConfig) -> Decoder:
    window = window_of(c)
    ffn = experts(
        c,
        MIXTRAL,
        inner=c.integer("intermediate_size"),
        selection=Selection(c.integer("num_experts_per_tok"), renormalised=True),
    )
    return decoder(c, [block(c, gqa(c, window=window), ffn)] * c.integer("num_hidden_layers"))


FAMILIES = (Family(architecture="MixtralForCausalLM", declare=mixtral),)
