"""Models that see: Mistral Small 3 and Ministral 3: Mistral's text, and Pixtral's tower whose states are merged by squares."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.llama import mistral
from sapwood.arch.families.sight import APART, pixtral, seeing
from sapwood.arch.families.within import text_of
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.sight_pixtral import PixtralTower
from sapwood.base.errors import ModelError


def _merging(c: HfConfig, v: HfConfig, hidden: int) -> PixtralTower:
    v.assume(image_size=1540, patch_size=14)
    c.assume(multimodal_projector_bias=False)
    made = pixtral(c, v, hidden)
    if len(made.features) > 1:
        raise ModelError("config.json: vision_feature_layer must be one number: states of one layer are merged.")
    eps = c.section("text_config").number("rms_norm_eps", 1e-6)
    return replace(made, merge=c.integer("spatial_merge_size", 2), join_eps=eps)


FAMILIES = (
    Family(architecture="Mistral3ForConditionalGeneration", declare=seeing(text_of(mistral, APART, ()), _merging)),
)
