"""Attention, MLP and the block that joins them.

Suffix legend: T tokens, E hidden size, H query heads, K KV heads, N = H + K, D head size, M intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sapwood.arch import parts
from sapwood.kernels import RmsNorm, Turn
from sapwood.nn.layers import Angles, Norm
from sapwood.nn.make import Build, Layer, make


class Attention(nn.Module):
    def __init__(self, part: parts.Attention, how: Build, layer: Layer | None) -> None:
        assert layer is not None
        super().__init__()
        self.qkv = make(part.qkv, how, layer)
        self.out = make(part.out, how, layer)
        num_qk = part.num_heads + part.num_kv_heads
        self._shape, self._scale = (num_qk + part.num_kv_heads, part.head_dim), part.scale
        self._backend, self._layer = layer.backend, layer.number
        self._rope = layer.ropes.index(part.rope)
        self._norm_ND: Tensor | None = None
        self._eps = 0.0
        if part.q_norm is not None and part.k_norm is not None:
            # One weight for queries and keys side by side, so that one kernel norms and rotates both.
            assert part.q_norm.eps == part.k_norm.eps
            norm_ND = torch.empty((num_qk, part.head_dim), device=how.device)
            self.q_norm = Norm(part.q_norm, how, weight=norm_ND[: part.num_heads])
            self.k_norm = Norm(part.k_norm, how, weight=norm_ND[part.num_heads :])
            self._norm_ND, self._eps = norm_ND, part.q_norm.eps

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        """Attention over the norm of x + residual; returns what it yields, and that sum."""
        heads_TX, residual_TE = self.qkv.normed(x_TE, residual_TE, norm)
        heads_TXD = heads_TX.unflatten(-1, self._shape)
        turn = Turn(*angles[self._rope], self._norm_ND, self._eps)
        out_THD = self._backend.run(self._layer, heads_TXD, turn, self._scale)
        return self.out(out_THD.flatten(1)), residual_TE


class Mlp(nn.Module):
    def __init__(self, part: parts.Mlp, how: Build, layer: Layer | None) -> None:
        super().__init__()
        self.gate_up = make(part.gate_up, how, layer)
        self.down = make(part.down, how, layer)
        self._activation = part.activation

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm) -> tuple[Tensor, Tensor]:
        """The MLP of the norm of x + residual; returns what it yields, and that sum."""
        inner_TM, residual_TE = self.gate_up.normed(x_TE, residual_TE, norm, self._activation)
        return self.down(inner_TM), residual_TE


class Block(nn.Module):
    def __init__(self, part: parts.Block, how: Build, layer: Layer | None) -> None:
        super().__init__()
        self.attention_norm = make(part.attention_norm, how, layer)
        self.attention = make(part.attention, how, layer)
        self.after_attention = make(part.after_attention, how, layer) if part.after_attention else None
        self.mlp_norm = make(part.mlp_norm, how, layer)
        self.mlp = make(part.mlp, how, layer)
        self.after_mlp = make(part.after_mlp, how, layer) if part.after_mlp else None

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, angles: Sequence[Angles]) -> tuple[Tensor, Tensor]:
        """x is what the block before yielded, not yet added to the residual stream; returns the same pair."""
        x_TE, residual_TE = self.attention(x_TE, residual_TE, self.attention_norm.rms, angles)
        if self.after_attention is not None:
            x_TE = self.after_attention(x_TE)
        x_TE, residual_TE = self.mlp(x_TE, residual_TE, self.mlp_norm.rms)
        if self.after_mlp is not None:
            x_TE = self.after_mlp(x_TE)
        return x_TE, residual_TE


make.register(parts.Attention, Attention)
make.register(parts.Mlp, Mlp)
make.register(parts.Block, Block)
