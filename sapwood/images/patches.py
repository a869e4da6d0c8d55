"""Qwen's images: of nearly their own size, in patches; their places have rows and columns among rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sapwood.arch.sight import QwenTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Expansion, Settings, media_of, pixels_of, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3
_MOST_RATIO = 200


class Patches:
    """Scales to as many pixels as the settings say, and no more than `within`, where that is set."""

    within: int | None = None

    def __init__(self, tower: QwenTower, fields: Mapping[str, Any], token: int) -> None:
        s = Settings(
            fields,
            size={},
            resample=_BICUBIC,
            image_mean=_CLIP_MEAN,
            image_std=_CLIP_STD,
        )
        self.token, self._tower, self._normal = token, tower, s.normal()
        self._filter, self._factor = s.count("resample"), tower.patch * tower.merge
        self._least = self._pixels(s, "min_pixels", "shortest_edge", 56 * 56)
        self._most = self._pixels(s, "max_pixels", "longest_edge", 28 * 28 * 1280)
        for name, own in (
            ("patch_size", tower.patch),
            ("merge_size", tower.merge),
            ("temporal_patch_size", tower.frames),
        ):
            if s.count(name, own) != own:
                raise ModelError(f"preprocessor_config.json: {name} = {s.get(name)} is {own} in config.json.")
        if not s.flag("do_resize"):
            raise ModelError("preprocessor_config.json: do_resize must be true: images are cut into whole patches.")

    @staticmethod
    def _pixels(s: Settings, name: str, key: str, default: int) -> int:
        if s.get(name) is not None:
            return s.count(name)
        return s.edge("size", key) if s.has_edge("size", key) else default

    def prepare(self, image: Image) -> Media:
        """Raises ValueError for an image more than 200 times as long as wide."""
        height, width = self._target(image.height, image.width)
        pixels = pixels_of([resized(image, height, width, self._filter)])
        rows, columns = height // self._factor, width // self._factor
        turns = np.zeros((3, rows * columns), np.int32)
        turns[1], turns[2] = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)
        return media_of(pixels, self._normal, rows * columns, turns=turns)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Sides that are multiples of a merged patch, with as many pixels as there may be, in nearly the same ratio."""
        if max(height, width) / min(height, width) > _MOST_RATIO:
            raise ValueError(f"its longer side is more than {_MOST_RATIO} times its shorter one")
        by, most = self._factor, self._most if self.within is None else min(self._most, self.within)
        tall, wide = round(height / by) * by, round(width / by) * by
        if tall * wide > most:
            beta = math.sqrt(height * width / most)
            tall = max(by, math.floor(height / beta / by) * by)
            wide = max(by, math.floor(width / beta / by) * by)
        elif tall * wide < self._least <= most:
            beta = math.sqrt(self._least / (height * width))
            tall, wide = math.ceil(height * beta / by) * by, math.ceil(width * beta / by) * by
        return max(tall, by), max(wide, by)  # where the most is less than the settings' least

    def expand(self, media: Media) -> Expansion:
        return Expansion([self.token] * media.length, [(0, media.length, 0)])
