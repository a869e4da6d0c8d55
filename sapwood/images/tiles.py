"""The images of Idefics 3 and SmolVLM: tiles of one size, row by row, and the whole image as one more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sapwood.arch.sight import ShuffledTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Expansion, Settings, media_of, pixels_of, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_LANCZOS = 1
_MOST_SIDE = 4096


class Tiles:
    """`encode` makes tokens of a text in which the names of special tokens are these; `image`, `around` and `whole` are what the
    family writes for a tile's places, around tiles and before the whole image."""

    def __init__(
        self,
        tower: ShuffledTower,
        fields: Mapping[str, Any],
        token: int,
        encode: Callable[[str], list[int]],
        *,
        image: str = "<image>",
        around: str = "<fake_token_around_image>",
        whole: str = "<global-img>",
    ) -> None:
        s = Settings(
            fields,
            size={"longest_edge": 4 * tower.vit.image},
            max_image_size={"longest_edge": tower.vit.image},
            resample=_LANCZOS,
            image_mean=(0.5,) * 3,
            image_std=(0.5,) * 3,
        )
        self.token, self._tower, self._normal, self._encode = token, tower, s.normal(), encode
        self._filter, self._longest = s.count("resample"), s.edge("size", "longest_edge")
        self._side = s.edge("max_image_size", "longest_edge")
        self._resizes, self._splits = s.flag("do_resize"), s.flag("do_image_splitting")
        self._image, self._around, self._whole = image, around, whole
        if self._side != tower.vit.image:
            raise ModelError(
                f"preprocessor_config.json: max_image_size.longest_edge ({self._side}) must be vision_config.image_size "
                f"({tower.vit.image})."
            )

    def prepare(self, image: Image) -> Media:
        """Raises ValueError for an image of which a side would have no pixel."""
        if self._resizes:
            width, height = image.size
            image = resized(image, *_within(*_stretched(height, width, self._longest), _MOST_SIDE), self._filter)
        if not self._splits:
            tiles, rows, columns = [resized(image, self._side, self._side, self._filter)], 0, 0
        else:
            tiles, rows, columns = self._split(image)
        grid = np.array([rows, columns], np.int32)
        return media_of(pixels_of(tiles), self._normal, len(tiles) * self._tower.length, grid=grid)

    def _split(self, image: Image) -> tuple[list[Image], int, int]:
        side, (width, height) = self._side, image.size
        ratio = width / height
        if width >= height:
            width = math.ceil(width / side) * side
            height = math.ceil(int(width / ratio) / side) * side
        else:
            height = math.ceil(height / side) * side
            width = math.ceil(int(height * ratio) / side) * side
        if not width or not height:
            raise ValueError("it is too narrow: a side would have no pixel")
        image = resized(image, height, width, self._filter)
        rows, columns = height // side, width // side
        if rows == columns == 1:
            return [image], 0, 0
        tiles = [
            image.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
            for y in range(rows)
            for x in range(columns)
        ]
        return [*tiles, resized(image, side, side, self._filter)], rows, columns

    def expand(self, media: Media) -> Expansion:
        rows, columns = media.arrays["grid"].numpy().tolist()
        written = ""
        for row in range(rows):
            for column in range(columns):
                written += f"{self._around}<row_{row + 1}_col_{column + 1}>{self._image}"
            written += "\n"
        if rows or columns:
            written += "\n"
        written += f"{self._around}{self._whole}{self._image}{self._around}"
        ids, spans, offset, length = list[int](), list[tuple[int, int, int]](), 0, self._tower.length
        for id in self._encode(written):
            if id == self.token:
                spans.append((len(ids), length, offset))
                ids += [id] * length
                offset += length
            else:
                ids.append(id)
        return Expansion(ids, spans)


def _stretched(height: int, width: int, longest: int) -> tuple[int, int]:
    """So that the longer side is that long, the shorter one even."""
    ratio = width / height
    if width >= height:
        width = longest
        height = int(width / ratio)
        height += height % 2
    else:
        height = longest
        width = int(height * ratio)
        width += width % 2
    return max(height, 1), max(width, 1)


def _within(height: int, width: int, most: int) -> tuple[int, int]:
    """So that no side is longer."""
    ratio = width / height
    if width >= height and width > most:
        width = most
        height = int(width / ratio)
    elif height > width and height > most:
        height = most
        width = int(height * ratio)
    return max(height, 1), max(width, 1)
