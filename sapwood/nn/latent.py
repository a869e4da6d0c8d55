"""Multi-head latent attention, absorbed: queries are brought to the latents, not latents to every head.

A head's key is `up`'s rows for it times the latent. Its product with a query is the latent's with the query times those rows; and
the weighted sum of a head's values is `up`'s other rows times the weighted sum of the latents. So latents are all that attention
reads, for all heads alike (DeepSeek-V2, 2024, section 2.1.2).

Suffix legend: T tokens, E hidden size, H heads, N numbers of a head that are not turned, P turned ones, R rank of the latents, W = R + P,
V numbers of a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sapwood.arch import latent as parts
from sapwood.attention.latent import LatentBackend, Turn
from sapwood.kernels import RmsNorm
from sapwood.nn.block import Before
from sapwood.nn.layers import Angles, Norm
from sapwood.nn.make import Derived, Site, make
from sapwood.quant.base import Weights


class LatentAttention(nn.Module, Derived):
    def __init__(self, part: parts.LatentAttention, site: Site) -> None:
        super().__init__()
        self.down: Weights = site.make("down", part.down)
        self.q_norm: Norm | None = site.make("q_norm", part.q_norm)
        self.q: Weights = site.make("q", part.q)
        self.kv_norm: Norm = site.make("kv_norm", part.kv_norm)
        self.up: Weights = site.make("up", part.up)
        self.out: Weights = site.make("out", part.out)
        self._norm = RmsNorm(self.kv_norm.weight, self.kv_norm.eps)
        self._nope, self._rank, self._width = part.nope, part.kv.rank, part.kv.width
        self._heads, self._scale, self._interleaved = part.num_heads, part.scale, part.rope.interleaved
        self._backend: LatentBackend = site.backend
        self._layer, self._rope = site.number, site.ropes.index(part.rope)
        self._how = site.how
        # Steps are rehearsed before there are weights, and want their shapes.
        self._place(
            torch.empty(
                self._heads, self._nope + part.value, self._rank, dtype=self._how.dtype, device=self._how.device
            )
        )

    def _place(self, up_HXR: Tensor) -> None:
        self._up_HXR = up_HXR
        self._keys_HNR, self._values_HRV = up_HXR[:, : self._nope], up_HXR[:, self._nope :].mT

    def derive(self) -> None:
        """What `up` multiplies by, whatever stores it, is its product with the identity."""
        one_RR = torch.eye(self._rank, dtype=self._how.dtype, device=self._how.device)
        self._place(self.up(one_RR).T.unflatten(0, (self._heads, -1)).contiguous())

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        down_TX, residual_TE = self.down.behind(x_TE, residual_TE, norm)
        latents_TW = down_TX[:, -self._width :]
        if self.q_norm is None:
            q_TX, _ = self.q.behind(residual_TE, None, norm)
        else:
            q_TX, _ = self.q.behind(down_TX[:, : -self._width], None, self.q_norm.how)
        q_THX = q_TX.unflatten(-1, (self._heads, -1))
        queries_THW = self._absorbed(q_THX)
        turn = Turn(self._norm, *angles[self._rope][:2], self._interleaved)
        sums_THR = self._backend.run(self._layer, queries_THW, latents_TW, turn, self._scale)
        values_HTV = torch.bmm(sums_THR.transpose(0, 1), self._values_HRV)
        self._backend.expand(self._layer, q_THX[..., : self._nope], queries_THW, self._up_HXR, values_HTV, self._scale)
        return self.out(values_HTV.transpose(0, 1).flatten(1)), residual_TE

    def _absorbed(self, q_THX: Tensor) -> Tensor:
        queries_THW = q_THX.new_empty(len(q_THX), self._heads, self._width)
        torch.bmm(
            q_THX[..., : self._nope].transpose(0, 1), self._keys_HNR, out=queries_THW[..., : self._rank].transpose(0, 1)
        )
        queries_THW[..., self._rank :] = q_THX[..., self._nope :]
        return queries_THW


make.register(parts.LatentAttention, LatentAttention)
