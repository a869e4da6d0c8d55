"""Gemma 3's images: squares of one size, between two of the family's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.arch.sight_gemma import PooledTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Expansion
from sapwood.images.square import Square

_BILINEAR = 2


class Framed(Square):
    """`begin` is what the template writes, and stands before the places of an image, which are `place`; `end` stands behind them."""

    def __init__(self, tower: PooledTower, fields: Mapping[str, Any], place: int, *, begin: int, end: int) -> None:
        given = {name: value for name, value in fields.items() if value is not None}
        super().__init__(tower, {"resample": _BILINEAR, **given}, begin)
        if given.get("do_pan_and_scan"):
            raise ModelError("preprocessor_config.json: do_pan_and_scan is not supported: an image is seen once.")
        self._place, self._end = place, end

    def expand(self, media: Media) -> Expansion:
        ids = [self.token, *[self._place] * media.length, self._end]
        return Expansion(ids, [(1, media.length, 0)])
