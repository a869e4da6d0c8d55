"""The images of Mistral Small 3 and Pixtral: of nearly their own size, row by row, with the family's token behind each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sapwood.arch.sight_pixtral import PixtralTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Expansion, Settings, media_of, pixels_of, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3


class Rows:
    """`encode` makes tokens of names of special tokens; `end` is what the family writes behind a row, `last` behind the last one. Images are
    scaled to no more than `within` pixels, where that is set."""

    within: int | None = None

    def __init__(
        self,
        tower: PixtralTower,
        fields: Mapping[str, Any],
        token: int,
        encode: Callable[[str], list[int]],
        *,
        end: str = "[IMG_BREAK]",
        last: str = "[IMG_END]",
    ) -> None:
        s = Settings(fields, size=tower.image, resample=_BICUBIC, image_mean=_CLIP_MEAN, image_std=_CLIP_STD)
        self.token, self._tower, self._normal, self._filter = token, tower, s.normal(), s.count("resample")
        self._end, self._last = encode(end), encode(last)
        longest = s.has_edge("size", "longest_edge") or isinstance(s.get("size"), int)
        names = ("longest_edge", "longest_edge") if longest else ("height", "width")
        self._tall, self._wide = (s.edge("size", name) for name in names)
        if not s.flag("do_resize"):
            raise ModelError("preprocessor_config.json: do_resize must be true: images are cut into whole patches.")
        if s.flag("do_center_crop", default=False):
            raise ModelError("preprocessor_config.json: do_center_crop is not supported here: whole images are seen.")

    def prepare(self, image: Image) -> Media:
        """Raises ValueError for an image that is so long that a side would have no pixel."""
        by = self._tower.square
        height, width = image.height, image.width
        if (ratio := max(height / self._tall, width / self._wide)) > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        if self.within is not None and (ratio := math.sqrt(height * width / self.within)) > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        if not height or not width:
            raise ValueError("it is too narrow: a side would have no pixel")
        rows, columns = -(-height // by), -(-width // by)
        return media_of(
            pixels_of([resized(image, rows * by, columns * by, self._filter)]), self._normal, rows * columns
        )

    def expand(self, media: Media) -> Expansion:
        rows, columns = (size // self._tower.square for size in media.arrays["pixels"].shape[2:])
        ids, spans = list[int](), list[tuple[int, int, int]]()
        for row in range(rows):
            spans.append((len(ids), columns, row * columns))
            ids += [self.token] * columns + (self._end if row + 1 < rows else self._last)
        return Expansion(ids, spans)
