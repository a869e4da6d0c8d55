"""The tower of Qwen3-VL and Qwen3.5.

Suffix legend: P patches, those of a square of merged ones side by side; E size of a state, Q squares, D size of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sight_qwen3
from sapwood.nn.make import make
from sapwood.nn.sight.qwen import EPS, Qwen
from sapwood.nn.sight.tower import activated


class Qwen3(Qwen):
    part: sight_qwen3.Qwen3Tower

    def _of(self, pixels_CYX: Tensor) -> Tensor:
        """vectors_QD of an image, and behind them those for each of the decoder's first layers."""
        part = self.part
        rows, columns = (size // part.patch for size in pixels_CYX.shape[1:])
        x_PE = self._patches(pixels_CYX) + self["tower.patch_embed.proj.bias"]
        x_PE = x_PE + self._places(rows, columns).to(x_PE.dtype)
        angles_PF = self._angles(rows, columns)
        turn = angles_PF.cos()[:, None], angles_PF.sin()[:, None]
        deep = dict[int, Tensor]()
        for index in range(part.layers):
            x_PE = self._layer(x_PE, turn, [len(x_PE)], f"tower.blocks.{index}")
            if index in part.deep:
                deep[index] = self._merged(x_PE, f"tower.deepstack_merger_list.{part.deep.index(index)}", late=True)
        return torch.cat(
            (self._merged(x_PE, "tower.merger", late=False), *(deep[index] for index in sorted(deep))), dim=-1
        )

    def _merged(self, x_PE: Tensor, name: str, *, late: bool) -> Tensor:
        """Squares' states side by side, normed before that or, if `late`, behind, through two Linears."""
        wide = self.part.hidden * self.part.merge**2
        x_PE = x_PE.view(-1, wide) if late else x_PE
        x_QE = self.centered(x_PE, f"{name}.norm", EPS).view(-1, wide)
        return self.affine(F.gelu(self.affine(x_QE, f"{name}.linear_fc1")), f"{name}.linear_fc2")

    def _mlp(self, x_PE: Tensor, name: str) -> Tensor:
        inner = activated(self.affine(x_PE, f"{name}.linear_fc1"), self.part.activation)
        return self.affine(inner, f"{name}.linear_fc2")

    def _places(self, rows: int, columns: int) -> Tensor:
        """places_PE: the table stretched so that its corners are the image's, between its entries by their distance."""
        part = self.part
        table = self["tower.pos_embed.weight"].float()
        low_Y, high_Y, part_Y = self._taps(rows)
        low_X, high_X, part_X = self._taps(columns)
        down, across = part_Y[:, None, None], part_X[None, :, None]

        def at(y: Tensor, x: Tensor) -> Tensor:
            return table[y[:, None] * part.side + x[None, :]]

        above = at(low_Y, low_X) * (1 - across) + at(low_Y, high_X) * across
        below = at(high_Y, low_X) * (1 - across) + at(high_Y, high_X) * across
        places = above * (1 - down) + below * down
        squares = places.unflatten(1, (-1, part.merge)).unflatten(0, (-1, part.merge)).transpose(1, 2)
        return squares.reshape(rows * columns, -1)

    def _taps(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of so many patches of an axis the entries before and behind each, and how far it is from the first of them."""
        last = self.part.side - 1
        exact = torch.arange(count, dtype=torch.float32, device=self.device) * last / max(count - 1, 1)
        low = exact.floor().long()
        return low, (low + 1).clamp_(max=last), exact - low


make.register(sight_qwen3.Qwen3Tower, Qwen3)
