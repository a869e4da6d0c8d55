"""Models that see: Gemma 3: SigLIP's tower, squares of whose patches are averaged, and images all of whose positions see each other."""

from __future__ import annotations

import math

from sapwood.arch.families.gemma3 import gemma3
from sapwood.arch.families.sight import APART, IDS, seeing, vit_of
from sapwood.arch.families.within import GEMMA3, text_of
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.sight import begun
from sapwood.arch.sight_gemma import PooledTower
from sapwood.base.errors import ModelError


def _pooled(c: HfConfig, v: HfConfig, hidden: int) -> PooledTower:
    vit, count = vit_of(v, clip=False), c.integer("mm_tokens_per_image", 256)
    side = math.isqrt(count)
    if side**2 != count or vit.side % side:
        raise ModelError(
            f"config.json: mm_tokens_per_image ({count}) must be the square of a number that divides {vit.side}, the patches of a side."
        )
    window = c.section("text_config").integer("sliding_window", 4096)
    if count > window:
        raise ModelError(
            f"config.json: an image of mm_tokens_per_image ({count}) must fit into sliding_window ({window})."
        )
    return PooledTower(
        out=hidden,
        roots=begun(("tower", "vision_tower.vision_model."), ("joiner", "multi_modal_projector.")),
        others=(begun(("tower", "vision_tower."), ("joiner", "multi_modal_projector.")),),
        vit=vit,
        side=side,
    )


FAMILIES = (
    Family(
        architecture="Gemma3ForConditionalGeneration",
        declare=seeing(text_of(gemma3, APART, IDS, **GEMMA3), _pooled),
    ),
)
