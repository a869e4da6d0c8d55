"""The towers of LLaVA-NeXT and LLaVA-OneVision: LLaVA's over tiles of the resolution that suits an image, and over the whole of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sapwood.arch.sight import LlavaTower, Sizes


class Cut(NamedTuple):
    """How vectors of tiles, side by side, become an image's: of `rows` by `columns` of them those that stand for no pixel are left out,
    which leaves `tall` by `wide` from row `top` and column `left` on; those are drawn together into `high` by `broad`."""

    rows: int
    columns: int
    top: int
    left: int
    tall: int
    wide: int
    high: int
    broad: int


@dataclass(frozen=True)
class TiledTower(LlavaTower):
    """Behind each row of an image's vectors stands one that ends it. An image is scaled into one of the `resolutions` (height, width), of
    whole tiles; of more than 1.1 squared times `most_tiles` tiles' vectors there are fewer, if it is set.
    """

    resolutions: tuple[tuple[int, int], ...] = ()
    most_tiles: int | None = None

    def params(self) -> Iterator[tuple[str, Sizes]]:
        yield from super().params()
        yield "newline", (self.out,)

    def best(self, height: int, width: int) -> tuple[int, int] | None:
        """The resolution that keeps most of an image's pixels, and of those the smallest; None for one too narrow for any."""
        found, most, least = None, 0, math.inf
        for tall, wide in self.resolutions:
            scale = min(wide / width, tall / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            if kept > most or (kept == most and tall * wide - kept < least):
                found, most, least = (tall, wide), kept, tall * wide - kept
        return found if most else None

    def cut(self, height: int, width: int, resolution: tuple[int, int]) -> Cut:
        """Of an image with so many pixels that is scaled into a resolution."""
        side = self.vit.side
        rows, columns = (size // self.vit.image for size in resolution)
        tall, wide = rows * side, columns * side
        top = left = 0
        if width / height > wide / tall:
            top = (tall - int(round(height * (wide / width), 7))) // 2
        else:
            left = (wide - int(round(width * (tall / height), 7))) // 2
        tall, wide = tall - 2 * top, wide - 2 * left
        high, broad = tall, wide
        if self.most_tiles is not None and (ratio := math.sqrt(tall * wide / (self.most_tiles * side**2))) > 1.1:
            high, broad = int(tall // ratio), int(wide // ratio)
        return Cut(rows, columns, top, left, tall, wide, high, broad)

    def positions(self, cut: Cut) -> int:
        """Those of the whole image, and of the tiles' rows with their ends."""
        return self.length + cut.high * (cut.broad + 1)

    def largest(self, most: int) -> tuple[Sizes, int]:
        sizes = [(self.positions(self.cut(*one, one)), one) for one in self.resolutions]
        length, (tall, wide) = max((one for one in sizes if one[0] <= most), default=min(sizes))
        tiles = 1 + tall // self.vit.image * (wide // self.vit.image)
        return (tiles, 3, self.vit.image, self.vit.image), length
