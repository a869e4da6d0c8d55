"""The towers of LLaVA-NeXT and LLaVA-OneVision.

Suffix legend: N tiles, L patches, D size of a vector, Y rows of vectors, X columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sight_tiled
from sapwood.base.media import Media
from sapwood.nn.make import make
from sapwood.nn.sight.vit import Llava


class Tiled(Llava):
    part: sight_tiled.TiledTower

    def of(self, media: Sequence[Media]) -> list[Tensor]:
        return [self._joined(torch.stack(self.vectors([self.values(one)])), self._cut(one)) for one in media]

    def _cut(self, one: Media) -> sight_tiled.Cut:
        """As it was prepared, or, of the largest image, its tiles one below the other."""
        if (cut := one.arrays.get("cut")) is not None:
            return sight_tiled.Cut(*cut.numpy().tolist())
        rows, image = one.arrays["pixels"].shape[0] - 1, self.part.vit.image
        return self.part.cut(rows * image, image, (rows * image, image))

    def _joined(self, tiles_NLD: Tensor, cut: sight_tiled.Cut) -> Tensor:
        """vectors_LD: the whole image's, and then row by row those of the tiles, each row with its end."""
        side = self.part.vit.side
        grid = tiles_NLD[1:].unflatten(0, (cut.rows, cut.columns)).unflatten(2, (side, side))
        grid_YXD = grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        grid_YXD = grid_YXD[cut.top : cut.top + cut.tall, cut.left : cut.left + cut.wide]
        if (cut.high, cut.broad) != (cut.tall, cut.wide):
            drawn = F.interpolate(grid_YXD.movedim(-1, 0)[None], (cut.high, cut.broad), mode="bilinear")
            grid_YXD = drawn[0].movedim(0, -1)
        ends_Y1D = self["newline"].expand(len(grid_YXD), 1, -1)
        return torch.cat((tiles_NLD[0], torch.cat((grid_YXD, ends_Y1D), dim=1).flatten(0, 1)))


make.register(sight_tiled.TiledTower, Tiled)
