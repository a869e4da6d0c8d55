"""CLIP's and SigLIP's towers, and what joins them to a decoder.

Suffix legend: N images, L patches (with CLIP one more), E size of a state, H heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sight
from sapwood.nn.make import make
from sapwood.nn.sight.tower import TowerModule, activated


class VitModule(TowerModule):
    """States of the layers of `vit`."""

    def states(self, pixels_NCYX: Tensor, vit: sight.Vit, last: int) -> list[Tensor]:
        """states_NLE before the first layer and behind each of the first `last`."""
        within = "tower.embeddings"
        patches = F.conv2d(
            pixels_NCYX.to(self.dtype),
            self[f"{within}.patch_embedding.weight"],
            None if vit.clip else self[f"{within}.patch_embedding.bias"],
            stride=vit.patch,
        )
        x_NLE = patches.flatten(2).transpose(1, 2)
        if vit.clip:
            whole_E = self[f"{within}.class_embedding"]
            x_NLE = torch.cat((whole_E.expand(len(x_NLE), 1, -1), x_NLE), dim=1)
        x_NLE = x_NLE + self[f"{within}.position_embedding.weight"]
        if vit.clip:
            x_NLE = self.centered(x_NLE, "tower.pre_layrnorm", vit.eps)
        found = [x_NLE]
        for index in range(last):
            found.append(self._layer(found[-1], vit, f"tower.encoder.layers.{index}"))
        return found

    def _layer(self, x_NLE: Tensor, vit: sight.Vit, name: str) -> Tensor:
        normed_NLE = self.centered(x_NLE, f"{name}.layer_norm1", vit.eps)
        q, k, v = (
            self.affine(normed_NLE, f"{name}.self_attn.{part}").unflatten(-1, (vit.heads, -1)).transpose(1, 2)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        mixed_NHLD = F.scaled_dot_product_attention(q, k, v)
        x_NLE = x_NLE + self.affine(mixed_NHLD.transpose(1, 2).flatten(2), f"{name}.self_attn.out_proj")
        inner = activated(
            self.affine(self.centered(x_NLE, f"{name}.layer_norm2", vit.eps), f"{name}.mlp.fc1"), vit.activation
        )
        return x_NLE + self.affine(inner, f"{name}.mlp.fc2")


class Llava(VitModule):
    part: sight.LlavaTower

    def vectors(self, images: Sequence[Tensor]) -> list[Tensor]:
        part = self.part
        states = self.states(torch.cat(list(images)), part.vit, max(part.features))
        first = 1 if part.vit.clip and not part.full else 0
        x = torch.cat([states[index][:, first:] for index in part.features], dim=-1)
        joined = self.affine(activated(self.affine(x, "joiner.linear_1"), part.activation), "joiner.linear_2")
        return list(joined.unbind(0))


class Shuffled(VitModule):
    part: sight.ShuffledTower

    def vectors(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [self._of(tiles) for tiles in images]

    def _of(self, tiles_NCYX: Tensor) -> Tensor:
        part = self.part
        states_NLE = self.states(tiles_NCYX, part.vit, part.vit.layers)[-1]
        x_NLE = self.centered(states_NLE, "tower.post_layernorm", part.vit.eps)
        return self.affine(squares(x_NLE, part.vit.side, part.factor), "joiner.proj").flatten(0, 1)


def squares(x_NLE: Tensor, side: int, by: int) -> Tensor:
    """The states of each square of `by` by `by` patches side by side, row by row; a side has so many patches."""
    apart = x_NLE.unflatten(1, (side // by, by, side // by, by)).permute(0, 1, 3, 2, 4, 5)
    return apart.flatten(3).flatten(1, 2)


make.register(sight.LlavaTower, Llava)
make.register(sight.ShuffledTower, Shuffled)
