"""The tower of Mistral Small 3 and Pixtral.

Suffix legend: P patches row by row, E size of a state, H heads, D size of a head, F half of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sight_pixtral
from sapwood.nn.make import make
from sapwood.nn.sight.qwen import turned
from sapwood.nn.sight.tower import TowerModule, activated

_EPS = 1e-5


class Pixtral(TowerModule):
    part: sight_pixtral.PixtralTower

    def vectors(self, images: Sequence[Tensor]) -> list[Tensor]:
        """One after the other: each has as many patches as a batch of others."""
        return [self._of(image) for image in images]

    def _of(self, pixels_1CYX: Tensor) -> Tensor:
        part = self.part
        patches = F.conv2d(pixels_1CYX.to(self.dtype), self["tower.patch_conv.weight"], stride=part.patch)
        rows, columns = patches.shape[2:]
        states = [self.squared(patches[0].flatten(1).T, "tower.ln_pre", _EPS)]
        angles_PF = self._angles(rows, columns)
        turn = angles_PF.cos()[:, None], angles_PF.sin()[:, None]
        for index in range(max(part.features)):
            states.append(self._layer(states[-1], turn, f"tower.transformer.layers.{index}"))
        x_PE = torch.cat([states[index] for index in part.features], dim=-1)
        if part.merge is not None:
            x_PE = self._merged(self.squared(x_PE, "joiner.norm", part.join_eps), rows, columns, part.merge)
        return self.affine(activated(self.affine(x_PE, "joiner.linear_1"), part.join), "joiner.linear_2")

    def _merged(self, x_PE: Tensor, rows: int, columns: int, by: int) -> Tensor:
        """Of each square of `by` by `by` all first numbers of its states, then all second ones, and so on."""
        grid = x_PE.view(rows // by, by, columns // by, by, -1).permute(0, 2, 4, 1, 3)
        return self.affine(grid.flatten(2).flatten(0, 1), "joiner.patch_merger.merging_layer")

    def _angles(self, rows: int, columns: int) -> Tensor:
        """angles_PF: pairs are turned by row, those of every second frequency, and then by column, those of the others."""
        part = self.part
        dim = part.hidden // part.heads
        steps = torch.arange(0, dim, 2, dtype=torch.float32, device=self.device) / dim
        radians_F = 1.0 / (part.theta**steps)
        down = torch.arange(rows, device=self.device).float()[:, None] * radians_F[0::2]
        across = torch.arange(columns, device=self.device).float()[:, None] * radians_F[1::2]
        both = (down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1))
        return torch.cat(both, dim=-1).flatten(0, 1)

    def _layer(self, x_PE: Tensor, turn: tuple[Tensor, Tensor], name: str) -> Tensor:
        normed_PE = self.squared(x_PE, f"{name}.attention_norm", _EPS)
        q, k, v = (
            self.affine(normed_PE, f"{name}.attention.{which}_proj").unflatten(-1, (self.part.heads, -1))
            for which in "qkv"
        )
        q, k, v = (one.transpose(0, 1)[None] for one in (turned(q, turn), turned(k, turn), v))
        mixed_PHD = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
        x_PE = x_PE + self.affine(mixed_PHD.flatten(1), f"{name}.attention.o_proj")
        normed_PE = self.squared(x_PE, f"{name}.ffn_norm", _EPS)
        gate = activated(self.affine(normed_PE, f"{name}.feed_forward.gate_proj"), self.part.activation)
        inner = gate * self.affine(normed_PE, f"{name}.feed_forward.up_proj")
        return x_PE + self.affine(inner, f"{name}.feed_forward.down_proj")


make.register(sight_pixtral.PixtralTower, Pixtral)
