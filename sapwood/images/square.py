"""LLaVA's images: squares of one size, CLIP's by cropping or SigLIP's by stretching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sapwood.arch.sight import LlavaTower
from sapwood.arch.sight_gemma import PooledTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Bytes, Expansion, Settings, media_of, pixels_of, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3
_MOST_RATIO = 200  # beyond which the longer side would take all memory before it is cropped


class Square:
    """The shortest side as long as `size` says, then the middle; or both sides as it says."""

    def __init__(self, tower: LlavaTower | PooledTower, fields: Mapping[str, Any], token: int) -> None:
        clip = tower.vit.clip
        s = Settings(
            fields,
            size={"shortest_edge": tower.vit.image} if clip else {"height": tower.vit.image, "width": tower.vit.image},
            crop_size={"height": tower.vit.image, "width": tower.vit.image},
            resample=_BICUBIC,
            image_mean=_CLIP_MEAN if clip else (0.5,) * 3,
            image_std=_CLIP_STD if clip else (0.5,) * 3,
        )
        self.token, self._tower, self._normal = token, tower, s.normal()
        self._filter = s.count("resample")
        self._resizes = s.flag("do_resize")
        self._short = None
        if isinstance(s.get("size"), int) or s.has_edge("size", "shortest_edge"):
            self._short = s.edge("size", "shortest_edge")
        else:
            self._height, self._width = s.edge("size", "height"), s.edge("size", "width")
        self._crop = None
        if s.flag("do_center_crop", clip):
            self._crop = s.edge("crop_size", "height"), s.edge("crop_size", "width")
        if s.flag("do_pad", default=False):
            raise ModelError("preprocessor_config.json: do_pad is not supported here: images are cropped.")

    def prepare(self, image: Image) -> Media:
        """Raises ValueError for an image whose shorter side is to have a length, and the longer one more than 200 times it."""
        if self._resizes:
            image = resized(image, *self._target(*image.size), self._filter)
        pixels = pixels_of([image])
        if self._crop is not None:
            pixels = _middle(pixels, *self._crop)
        side = self._tower.vit.image
        if pixels.shape[2:] != (side, side):
            raise ValueError(
                f"it comes out as {pixels.shape[3]} by {pixels.shape[2]} pixels, the model sees {side} by {side}"
            )
        return media_of(pixels, self._normal, self._tower.length)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        if self._short is None:
            return self._height, self._width
        if max(width, height) > _MOST_RATIO * min(width, height):
            raise ValueError(f"its longer side is more than {_MOST_RATIO} times its shorter one")
        long = int(self._short * max(width, height) / min(width, height))
        return (self._short, long) if height <= width else (long, self._short)

    def expand(self, media: Media) -> Expansion:
        return Expansion([self.token] * media.length, [(0, media.length, 0)])


def _middle(pixels: Bytes, height: int, width: int) -> Bytes:
    """The middle of an image, with zeros around one that is smaller."""
    have_y, have_x = pixels.shape[2:]
    if have_y >= height and have_x >= width:
        top, left = (have_y - height) // 2, (have_x - width) // 2
        return pixels[:, :, top : top + height, left : left + width]
    tall, wide = max(height, have_y), max(width, have_x)
    whole = np.zeros((*pixels.shape[:2], tall, wide), np.uint8)
    top, left = -((have_y - tall) // 2), -((have_x - wide) // 2)
    whole[:, :, top : top + have_y, left : left + have_x] = pixels
    return _middle(whole, height, width)
