"""The tower of Gemma 3.

Suffix legend: N images, L patches, E size of a state, P positions, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sight_gemma
from sapwood.nn.make import make
from sapwood.nn.sight.vit import VitModule


class Pooled(VitModule):
    part: sight_gemma.PooledTower

    def vectors(self, images: Sequence[Tensor]) -> list[Tensor]:
        part, vit = self.part, self.part.vit
        states_NLE = self.states(torch.cat(list(images)), vit, vit.layers)[-1]
        states_NLE = self.centered(states_NLE, "tower.post_layernorm", vit.eps)
        grid = states_NLE.transpose(1, 2).unflatten(2, (vit.side, vit.side))
        x_NPE = F.avg_pool2d(grid, vit.side // part.side).flatten(2).transpose(1, 2)
        wide = x_NPE.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + vit.eps)
        normed = normed * (1.0 + self["joiner.mm_soft_emb_norm.weight"].float())
        return list((normed.to(x_NPE.dtype) @ self["joiner.mm_input_projection_weight"]).unbind(0))


make.register(sight_gemma.PooledTower, Pooled)
