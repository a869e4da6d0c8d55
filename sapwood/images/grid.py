"""InternVL's images: tiles of one size in a grid that is nearest to the image's ratio, and the whole image as one more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sapwood.arch.sight import InternTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Expansion, Settings, media_of, pixels_of, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3


class Grid:
    """`encode` makes tokens of names of special tokens; `before` and `behind` are what the family writes around an image."""

    def __init__(
        self,
        tower: InternTower,
        fields: Mapping[str, Any],
        token: int,
        encode: Callable[[str], list[int]],
        *,
        before: str = "<img>",
        behind: str = "</img>",
    ) -> None:
        s = Settings(
            fields,
            size={"height": tower.image, "width": tower.image},
            resample=_BICUBIC,
            image_mean=_CLIP_MEAN,
            image_std=_CLIP_STD,
        )
        self.token, self._tower, self._normal = token, tower, s.normal()
        self._filter, self._before, self._behind = s.count("resample"), encode(before), encode(behind)
        self._least, self._most = s.count("min_patches", 1), s.count("max_patches", 12)
        for name in ("height", "width"):
            if s.edge("size", name) != tower.image:
                raise ModelError(
                    f"preprocessor_config.json: size.{name} ({s.edge('size', name)}) must be vision_config.image_size ({tower.image})."
                )

    def prepare(self, image: Image) -> Media:
        side = self._tower.image
        columns, rows = self._grid(*image.size)
        whole = resized(image, rows * side, columns * side, self._filter)
        tiles = [
            whole.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
            for y in range(rows)
            for x in range(columns)
        ]
        if len(tiles) > 1:
            tiles.append(resized(image, side, side, self._filter))
        return media_of(pixels_of(tiles), self._normal, len(tiles) * self._tower.length)

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of the ratio nearest to the image's; of several as near, the last for which the tiles have less than twice its
        pixels."""
        side, ratio = self._tower.image, width / height
        grids = [
            (columns, rows)
            for columns in range(1, self._most + 1)
            for rows in range(1, self._most + 1)
            if self._least <= columns * rows <= self._most
        ]
        best, least = (1, 1), float("inf")
        for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            away = abs(ratio - columns / rows)
            if away < least or (away == least and width * height > 0.5 * side * side * columns * rows):
                best, least = (columns, rows), away
        return best

    def expand(self, media: Media) -> Expansion:
        ids = [*self._before, *[self.token] * media.length, *self._behind]
        return Expansion(ids, [(len(self._before), media.length, 0)])
