"""InternVL's tower.

Suffix legend: N tiles, L patches and one vector of the whole, E size of a state, H heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sight
from sapwood.nn.make import make
from sapwood.nn.sight.tower import TowerModule, activated
from sapwood.nn.sight.vit import squares

_EPS = 1e-6  # of the norms of queries and keys
_JOIN_EPS = 1e-5


class Intern(TowerModule):
    part: sight.InternTower

    def vectors(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [self._of(tiles) for tiles in images]

    def _of(self, tiles_NCYX: Tensor) -> Tensor:
        part, within = self.part, "tower.embeddings"
        patches = F.conv2d(
            tiles_NCYX.to(self.dtype),
            self[f"{within}.patch_embeddings.projection.weight"],
            self[f"{within}.patch_embeddings.projection.bias"],
            stride=part.patch,
        )
        x_NLE = patches.flatten(2).transpose(1, 2)
        x_NLE = torch.cat((self[f"{within}.cls_token"].expand(len(x_NLE), 1, -1), x_NLE), dim=1)
        x_NLE = x_NLE + self[f"{within}.position_embeddings"]
        for index in range(part.layers):
            x_NLE = self._layer(x_NLE, f"tower.encoder.layer.{index}")
        if part.final:
            x_NLE = self.centered(x_NLE, "tower.layernorm", part.eps)
        wide = self.centered(squares(x_NLE[:, 1:], part.side, part.factor), "joiner.layer_norm", _JOIN_EPS)
        inner = activated(self.affine(wide, "joiner.linear_1"), part.join)
        return self.affine(inner, "joiner.linear_2").flatten(0, 1)

    def _layer(self, x_NLE: Tensor, name: str) -> Tensor:
        part = self.part
        normed_NLE = self._normed(x_NLE, f"{name}.layernorm_before")
        q, k, v = (self.affine(normed_NLE, f"{name}.attention.{which}_proj") for which in "qkv")
        if part.normed:
            q, k = (self.squared(x, f"{name}.attention.{which}_norm", _EPS) for x, which in ((q, "q"), (k, "k")))
        heads = (x.unflatten(-1, (part.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed_NHLD = F.scaled_dot_product_attention(*heads)
        mixed_NLE = self.affine(mixed_NHLD.transpose(1, 2).flatten(2), f"{name}.attention.projection_layer")
        x_NLE = x_NLE + self[f"{name}.lambda_1"] * mixed_NLE
        inner = activated(
            self.affine(self._normed(x_NLE, f"{name}.layernorm_after"), f"{name}.mlp.fc1"), part.activation
        )
        return x_NLE + self[f"{name}.lambda_2"] * self.affine(inner, f"{name}.mlp.fc2")

    def _normed(self, x_NLE: Tensor, name: str) -> Tensor:
        return (self.squared if self.part.squared else self.centered)(x_NLE, name, self.part.eps)


make.register(sight.InternTower, Intern)
