"""The towers of Qwen2-VL and Qwen2.5-VL.

Suffix legend: P patches, those of a square of merged ones side by side; E size of a state, H heads, D size of a head, F half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sight
from sapwood.nn.make import make
from sapwood.nn.sight.tower import TowerModule, activated

EPS = 1e-6


class Order(NamedTuple):
    """Of an image's merged squares: in which order windows have them, and how many patches each window has."""

    squares: Tensor
    sizes: list[int]


class Qwen(TowerModule):
    part: sight.QwenTower

    def vectors(self, images: Sequence[Tensor]) -> list[Tensor]:
        """One after the other: each has as many patches as a batch of others."""
        return [self._of(image[0]) for image in images]

    def _of(self, pixels_CYX: Tensor) -> Tensor:
        part, square = self.part, self.part.merge**2
        rows, columns = (size // part.patch for size in pixels_CYX.shape[1:])
        x_PE = self._patches(pixels_CYX)
        angles_PF = self._angles(rows, columns)
        order = None if part.window is None else self._order(rows, columns)
        if order is not None:
            x_PE, angles_PF = (
                some.unflatten(0, (-1, square))[order.squares].flatten(0, 1) for some in (x_PE, angles_PF)
            )
        turn = angles_PF.cos()[:, None], angles_PF.sin()[:, None]
        for index in range(part.layers):
            sizes = [len(x_PE)] if order is None or index in part.whole else order.sizes
            x_PE = self._layer(x_PE, turn, sizes, f"tower.blocks.{index}")
        wide = self._normed(x_PE, "tower.merger.ln_q").view(-1, square * part.hidden)
        vectors = self.affine(F.gelu(self.affine(wide, "tower.merger.mlp.0")), "tower.merger.mlp.2")
        return vectors if order is None else vectors[order.squares.argsort()]

    def _patches(self, pixels_CYX: Tensor) -> Tensor:
        """Their products with the kernel; an image is the same in all frames."""
        part = self.part
        squares = pixels_CYX.unflatten(2, (-1, part.merge, part.patch)).unflatten(1, (-1, part.merge, part.patch))
        patches = squares.permute(1, 4, 2, 5, 0, 3, 6).flatten(0, 3).to(self.dtype)
        weight = self["tower.patch_embed.proj.weight"]
        return F.linear(patches.flatten(1), weight.sum(2).flatten(1))

    def _angles(self, rows: int, columns: int) -> Tensor:
        """angles_PF: of the first half of a head's pairs by row, of the second by column."""
        part = self.part
        quarter = part.hidden // part.heads // 2
        steps = torch.arange(0, quarter, 2, dtype=torch.float32, device=self.device) / quarter
        radians = 1.0 / (part.theta**steps)
        places = torch.stack(
            torch.meshgrid(
                torch.arange(rows, device=self.device), torch.arange(columns, device=self.device), indexing="ij"
            ),
            dim=-1,
        )
        squares = places.unflatten(1, (-1, part.merge)).unflatten(0, (-1, part.merge)).transpose(1, 2)
        return (squares.reshape(-1, 2, 1).float() * radians).flatten(1)

    def _order(self, rows: int, columns: int) -> Order:
        part = self.part
        assert part.window is not None, "asked only of those that have windows"
        side = part.window // part.merge // part.patch
        down, across = rows // part.merge, columns // part.merge
        numbers = torch.arange(down * across, device=self.device).view(down, across)
        windows = [
            numbers[y : y + side, x : x + side].flatten() for y in range(0, down, side) for x in range(0, across, side)
        ]
        return Order(torch.cat(windows), [len(window) * part.merge**2 for window in windows])

    def _layer(self, x_PE: Tensor, turn: tuple[Tensor, Tensor], sizes: list[int], name: str) -> Tensor:
        part = self.part
        heads = self.affine(self._normed(x_PE, f"{name}.norm1"), f"{name}.attn.qkv").unflatten(-1, (3, part.heads, -1))
        q_PHD, k_PHD = (turned(heads[:, which], turn) for which in (0, 1))
        runs = zip(*(some.split(sizes) for some in (q_PHD, k_PHD, heads[:, 2])), strict=True)
        mixed = [
            F.scaled_dot_product_attention(*(one.transpose(0, 1)[None] for one in run))[0].transpose(0, 1)
            for run in runs
        ]
        x_PE = x_PE + self.affine(torch.cat(mixed).flatten(1), f"{name}.attn.proj")
        return x_PE + self._mlp(self._normed(x_PE, f"{name}.norm2"), f"{name}.mlp")

    def _mlp(self, x_PE: Tensor, name: str) -> Tensor:
        if self.part.window is None:
            return self.affine(activated(self.affine(x_PE, f"{name}.fc1"), self.part.activation), f"{name}.fc2")
        gate = activated(self.affine(x_PE, f"{name}.gate_proj"), self.part.activation)
        return self.affine(gate * self.affine(x_PE, f"{name}.up_proj"), f"{name}.down_proj")

    def _normed(self, x_PE: Tensor, name: str) -> Tensor:
        return (self.centered if self.part.window is None else self.squared)(x_PE, name, EPS)


def turned(x_PHD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """In float32."""
    cos, sin = turn
    first, second = x_PHD.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_PHD.dtype)


make.register(sight.QwenTower, Qwen)
