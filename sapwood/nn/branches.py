"""The module of a feed-forward of two branches.

Suffix legend: T tokens, E hidden size, X experts.
"""

from __future__ import annotations

from torch import Tensor, nn

from sapwood.arch import branches as parts
from sapwood.base.errors import ModelError
from sapwood.nn.block import Before
from sapwood.nn.make import Derived, Site, make


class Branches(nn.Module, Derived):
    def __init__(self, part: parts.Branches, site: Site) -> None:
        super().__init__()
        self.mlp, self.after = site.make("mlp", part.mlp), site.make("after", part.after)
        self.experts, self.factors = site.make("experts", part.experts), site.make("factors", part.factors)
        self.experts_norm = site.make("experts_norm", part.experts_norm)
        self.after_experts = site.make("after_experts", part.after_experts)

    again = False

    def derive(self) -> None:
        """What an expert yields is multiplied where its last product is, once."""
        weight_XOI = self.experts.down.weight
        if not isinstance(weight_XOI, Tensor):
            raise ModelError("experts with factors of their own cannot be quantised: load the plain weights.")
        weight_XOI.mul_(self.factors.weight[:, None, None])

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before) -> tuple[Tensor, Tensor]:
        dense_TE, sum_TE = self.mlp(x_TE, residual_TE, norm)
        sparse_TE, _ = self.experts(sum_TE, None, self.experts_norm.how)
        return self.after(dense_TE) + self.after_experts(sparse_TE), sum_TE


make.register(parts.Branches, Branches)
