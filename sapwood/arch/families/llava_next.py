"""Models that see: LLaVA-NeXT (1.6) and LLaVA-OneVision: LLaVA over tiles of the resolution that suits an image, and over the whole of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sapwood.arch.families.sight import APART, IDS, LLAMA, any_text, llava, seeing
from sapwood.arch.families.within import text_of
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.sight_tiled import TiledTower
from sapwood.base.errors import ModelError

_ONE_VISION = tuple(range(384, 2305, 384))
_ASPECT = re.compile(r"anyres_max_([1-9]\d*)")
_NEWLINE = (("newline", "image_newline"),), (("newline", "model.image_newline"),)


def _next(c: HfConfig, v: HfConfig, hidden: int) -> TiledTower:
    v.assume(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return _tiled(c, v, hidden, ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)), None)


def _one_vision(c: HfConfig, v: HfConfig, hidden: int) -> TiledTower:
    v.assume(
        model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
        num_attention_heads=16, image_size=384, patch_size=14,
    )  # fmt: skip
    c.assume(vision_feature_select_strategy="full", vision_feature_layer=-1)
    aspect = c.string("vision_aspect_ratio", "anyres_max_9")
    if (most := _ASPECT.fullmatch(aspect)) is None:
        raise ModelError(f"config.json: vision_aspect_ratio must be anyres_max_ and a number of tiles, got {aspect!r}.")
    return _tiled(c, v, hidden, tuple((tall, wide) for tall in _ONE_VISION for wide in _ONE_VISION), int(most[1]))


def _tiled(
    c: HfConfig, v: HfConfig, hidden: int, resolutions: Sequence[tuple[int, int]], most: int | None
) -> TiledTower:
    base = llava(c, v, hidden)
    if base.full and base.vit.clip:
        raise ModelError("config.json: vision_feature_select_strategy = 'full' is not supported for tiles of CLIP's.")
    given = c.field("image_grid_pinpoints")
    found = tuple(resolutions) if given is None else checked(given, base.vit.image)
    fields = {name: value for name, value in vars(base).items() if name not in ("roots", "others")}
    spellings = [(*roots, *newline) for roots in (base.roots, *base.others) for newline in _NEWLINE]
    return TiledTower(**fields, roots=spellings[0], others=tuple(spellings[1:]), resolutions=found, most_tiles=most)


def checked(given: Any, side: int) -> tuple[tuple[int, int], ...]:
    """Pairs of whole tiles."""
    sound = isinstance(given, list | tuple) and given
    if not sound or not all(isinstance(one, list | tuple) and len(one) == 2 for one in given):
        raise ModelError("config.json: image_grid_pinpoints must be a list of pairs of a height and a width.")
    if not all(type(size) is int and size > 0 and size % side == 0 for one in given for size in one):
        raise ModelError(f"config.json: image_grid_pinpoints must be whole tiles of {side} pixels.")
    return tuple((tall, wide) for tall, wide in given)


FAMILIES = (
    Family(
        architecture="LlavaNextForConditionalGeneration",
        declare=seeing(text_of(any_text, APART, IDS, **LLAMA), _next),
    ),
    Family(
        architecture="LlavaOnevisionForConditionalGeneration",
        declare=seeing(text_of(any_text, APART, IDS, model_type="qwen2"), _one_vision),
    ),
)
