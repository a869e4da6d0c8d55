"""The block that joins a mixer and a feed-forward, and those that there are: attention and the MLP.

A mixer's module is called with (x, residual, norm, angles), a feed-forward's with (x, residual, norm): both compute on the
norm of x + residual, so that the norm can be fused with their first product, and return what they yield, and that sum.

Suffix legend: T tokens, E hidden size, H query heads, K KV heads, N = H + K, D head size, M intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sapwood.arch import parts
from sapwood.attention.base import HeadsBackend
from sapwood.kernels import NormRope, RmsNorm
from sapwood.nn.layers import Angles, Norm
from sapwood.nn.make import Site, make


class Attention(nn.Module):
    def __init__(self, part: parts.Attention, site: Site) -> None:
        super().__init__()
        self.qkv = site.make("qkv", part.qkv)
        self.out = site.make("out", part.out)
        num_qk = part.num_heads + part.num_kv_heads
        self._shape, self._scale = (num_qk + part.num_kv_heads, part.head_dim), part.scale
        self._backend: HeadsBackend = site.backend
        self._layer, self._rope = site.number, site.ropes.index(part.rope)
        self._norm_ND: Tensor | None = None
        self._eps = 0.0
        if part.q_norm is not None and part.k_norm is not None:
            # One weight for queries and keys side by side, so that one kernel norms and rotates both.
            assert part.q_norm.eps == part.k_norm.eps
            norm_ND = torch.empty((num_qk, part.head_dim), device=site.how.device)
            self.q_norm = Norm(part.q_norm, site, weight=norm_ND[: part.num_heads])
            self.k_norm = Norm(part.k_norm, site, weight=norm_ND[part.num_heads :])
            self._norm_ND, self._eps = norm_ND, part.q_norm.eps

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        heads_TX, residual_TE = self.qkv.normed(x_TE, residual_TE, norm)
        heads_TXD = heads_TX.unflatten(-1, self._shape)
        rope = NormRope(*angles[self._rope], self._norm_ND, self._eps)
        out_THD = self._backend.run(self._layer, heads_TXD, rope, self._scale)
        return self.out(out_THD.flatten(1)), residual_TE


class Mlp(nn.Module):
    def __init__(self, part: parts.Mlp, site: Site) -> None:
        super().__init__()
        self.gate_up = site.make("gate_up", part.gate_up)
        self.down = site.make("down", part.down)
        self._activation = part.activation

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm) -> tuple[Tensor, Tensor]:
        inner_TM, residual_TE = self.gate_up.normed(x_TE, residual_TE, norm, self._activation)
        return self.down(inner_TM), residual_TE


class Block(nn.Module):
    def __init__(self, part: parts.Block, site: Site) -> None:
        super().__init__()
        self.mixer_norm = site.make("mixer_norm", part.mixer_norm)
        self.mixer = site.make("mixer", part.mixer)
        self.after_mixer = site.make("after_mixer", part.after_mixer)
        self.ffn_norm = site.make("ffn_norm", part.ffn_norm)
        self.ffn = site.make("ffn", part.ffn)
        self.after_ffn = site.make("after_ffn", part.after_ffn)

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, angles: Sequence[Angles]) -> tuple[Tensor, Tensor]:
        """x is what the block before yielded, not yet added to the residual stream; returns the same pair."""
        x_TE, residual_TE = self.mixer(x_TE, residual_TE, self.mixer_norm.rms, angles)
        if self.after_mixer is not None:
            x_TE = self.after_mixer(x_TE)
        x_TE, residual_TE = self.ffn(x_TE, residual_TE, self.ffn_norm.rms)
        if self.after_ffn is not None:
            x_TE = self.after_ffn(x_TE)
        return x_TE, residual_TE


make.register(parts.Attention, Attention)
make.register(parts.Mlp, Mlp)
make.register(parts.Block, Block)
