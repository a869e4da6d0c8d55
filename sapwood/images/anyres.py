"""The images of LLaVA-NeXT and LLaVA-OneVision: the whole as one tile, and scaled into the resolution that suits it, cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sapwood.arch.sight_tiled import TiledTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Expansion, Settings, media_of, pixels_of, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3


class Anyres:
    def __init__(self, tower: TiledTower, fields: Mapping[str, Any], token: int) -> None:
        side = tower.vit.image
        s = Settings(fields, size=side, resample=_BICUBIC, image_mean=_CLIP_MEAN, image_std=_CLIP_STD)
        self.token, self._tower, self._normal, self._filter = token, tower, s.normal(), s.count("resample")
        short = s.has_edge("size", "shortest_edge")
        edges = [("size", "shortest_edge")] if short else [("size", "height"), ("size", "width")]
        if s.get("crop_size") is not None:
            edges += [("crop_size", "height"), ("crop_size", "width")]
        for name, key in edges:
            if (found := s.edge(name, key)) != side:
                raise ModelError(
                    f"preprocessor_config.json: {name}.{key} ({found}) must be vision_config.image_size ({side})."
                )
        own = s.get("image_grid_pinpoints")
        if own is not None and [tuple(one) for one in own] != list(tower.resolutions):
            raise ModelError("preprocessor_config.json: image_grid_pinpoints must be those of config.json.")

    def prepare(self, image: Image) -> Media:
        """Raises ValueError for an image of which a side would have no pixel."""
        tower, side = self._tower, self._tower.vit.image
        if (resolution := tower.best(image.height, image.width)) is None:
            raise ValueError("it is too narrow: a side would have no pixel")
        canvas = self._within(image, *resolution)
        tiles = [
            canvas.crop((x, y, x + side, y + side))
            for y in range(0, resolution[0], side)
            for x in range(0, resolution[1], side)
        ]
        cut = tower.cut(image.height, image.width, resolution)
        pixels = pixels_of([resized(image, side, side, self._filter), *tiles])
        return media_of(pixels, self._normal, tower.positions(cut), cut=np.array(cut, np.int32))

    def _within(self, image: Image, tall: int, wide: int) -> Image:
        """As large as it can be, in the middle of black."""
        from PIL import Image as pillow

        across, down = wide / image.width, tall / image.height
        if across < down:
            height, width = min(math.ceil(image.height * across), tall), wide
        else:
            height, width = tall, min(math.ceil(image.width * down), wide)
        canvas = pillow.new("RGB", (wide, tall))
        canvas.paste(resized(image, height, width, self._filter), ((wide - width) // 2, (tall - height) // 2))
        return canvas

    def expand(self, media: Media) -> Expansion:
        return Expansion([self.token] * media.length, [(0, media.length, 0)])
