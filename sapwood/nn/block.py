"""The block that joins a mixer and a feed-forward, and those that there are: attention and the MLPs.

A mixer's module is called with (x, residual, norm, angles), a feed-forward's with (x, residual, norm): both compute on the
norm of x + residual, if there is one, so that it can be fused with their first product, and return what they yield, and
that sum.

Suffix legend: T tokens, E hidden size, H query heads, K KV heads, N = H + K, D head size, M intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sapwood.arch import parts
from sapwood.attention.base import Dividing, HeadsBackend
from sapwood.attention.scaled import Factors
from sapwood.kernels import LayerNorm, NormRope, RmsNorm
from sapwood.nn.layers import Angles, Norm, Sinks
from sapwood.nn.make import Derived, Site, make
from sapwood.parallel import ALONE

Before = RmsNorm | LayerNorm | None
"""A norm before a mixer or a feed-forward."""


class Attention(nn.Module, Derived):
    def __init__(self, part: parts.Attention, site: Site) -> None:
        super().__init__()
        self.qkv = site.make("qkv", part.qkv)
        self.out = site.make("out", part.out)
        num_qk = part.num_heads + part.num_kv_heads
        self._shape, self._part = (num_qk + part.num_kv_heads, part.head_dim), part
        self._backend: HeadsBackend = site.backend
        self._layer, self._rope = site.number, site.ropes.index(part.rope)
        self.norm_ND: Tensor | None = None
        self._eps, self._center = 0.0, False
        self.v_norm: Norm | None = site.make("v_norm", part.v_norm)
        self.sinks: Sinks | None = site.make("sinks", part.sinks)
        self._source: tuple[
            Attention, ...
        ] = ()  # whose keys and values are this one's; in a tuple, or it were a part of it
        self.kept_TX: Tensor | None = None  # keys and values as they were projected, if another wants them
        self.keeps = False
        if part.q_norm is None:
            return
        if not part.norms_heads:
            self.q_norm, self.k_norm = site.make("q_norm", part.q_norm), site.make("k_norm", part.k_norm)
            return
        # One weight for queries and keys side by side, so that one kernel norms and rotates both.
        self.norm_ND = torch.empty((num_qk, part.head_dim), device=site.how.device)
        self.q_norm = Norm(part.q_norm, site, weight=self.norm_ND[: part.num_heads])
        if part.k_norm is not None:
            assert (part.q_norm.eps, part.q_norm.center) == (part.k_norm.eps, part.k_norm.center)
            self.k_norm = Norm(part.k_norm, site, weight=self.norm_ND[part.num_heads :])
        self._eps, self._center = part.q_norm.eps, part.q_norm.center

    @property
    def kept(self) -> tuple[int, Factors] | None:
        """The layer of its backend, and what that divides keys and values by, if it does."""
        factors = self._backend.factors if isinstance(self._backend, Dividing) else None
        return None if factors is None else (self._layer, factors)

    def share(self, source: Attention) -> None:
        """Take keys and values, and the norm of keys, from another, which runs before."""
        self._source, source.keeps = (source,), True

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        heads_TX, residual_TE = self.qkv.behind(x_TE, residual_TE, norm)
        part, gate_TX = self._part, None
        if part.gated:
            width = part.num_heads * part.head_dim
            heads_TX, gate_TX = heads_TX[:, :-width], heads_TX[:, -width:]
        if part.q_norm is not None and not part.norms_heads:
            sizes = part.num_heads * part.head_dim, part.num_kv_heads * part.head_dim
            for some_TX, one in zip(
                heads_TX.split([*sizes, sizes[1]], dim=-1), (self.q_norm, self.k_norm), strict=False
            ):
                some_TX.copy_(one(some_TX))
        if self._source or self.keeps or self.v_norm is not None:
            heads_TX = self._completed(heads_TX)
        heads_TXD = heads_TX.unflatten(-1, self._shape)
        turns = part.rope.interleaved
        cos_TF, sin_TF, sharp_T = angles[self._rope]
        if sharp_T is not None:
            heads_TXD[:, : part.num_heads] *= sharp_T[:, None, None].to(heads_TXD.dtype)
        rope = NormRope(cos_TF, sin_TF, self.norm_ND, self._eps, turns, self._center, part.late)
        sinks = () if self.sinks is None else (self.sinks.weight,)
        out_THD = self._backend.run(self._layer, heads_TXD, rope, part.scale, *sinks)
        out_TX = out_THD.flatten(1)
        return self.out(out_TX if gate_TX is None else out_TX * gate_TX.sigmoid()), residual_TE

    def _completed(self, heads_TX: Tensor) -> Tensor:
        """With the keys and values of another, or with values that are the keys, and normed."""
        part = self._part
        size, queries = part.num_kv_heads * part.head_dim, part.num_heads * part.head_dim
        if self._source:
            kept_TX = self._source[0].kept_TX
            assert kept_TX is not None, "it runs before"
            return torch.cat((heads_TX, kept_TX), dim=-1)
        if heads_TX.shape[-1] < queries + 2 * size:
            heads_TX = torch.cat((heads_TX, heads_TX[:, queries:]), dim=-1)
        if self.v_norm is not None:
            values_TX = heads_TX[:, queries + size :]
            values_TX.copy_(self.v_norm(values_TX.reshape(-1, part.head_dim)).view_as(values_TX))
        if self.keeps:
            self.kept_TX = heads_TX[:, queries:].clone()
        return heads_TX

    def derive(self) -> None:
        """Keys that another one keeps are normed as that one does."""
        if self.norm_ND is not None and self._source:
            of_keys_ND, num_heads = self._source[0].norm_ND, self._part.num_heads
            assert of_keys_ND is not None
            self.norm_ND[num_heads:].copy_(of_keys_ND[num_heads:])


class Mlp(nn.Module):
    def __init__(self, part: parts.Mlp, site: Site) -> None:
        super().__init__()
        self.gate_up = site.make("gate_up", part.gate_up)
        self.down = site.make("down", part.down)
        self._activation = part.activation

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before) -> tuple[Tensor, Tensor]:
        if self.down.rounds(len(x_TE)):
            both_T2M, residual_TE = self.gate_up.behind(x_TE, residual_TE, norm)
            return self.down.gated(both_T2M, self._activation), residual_TE
        inner_TM, residual_TE = self.gate_up.behind(x_TE, residual_TE, norm, self._activation)
        return self.down(inner_TM), residual_TE


class PlainMlp(nn.Module):
    def __init__(self, part: parts.PlainMlp, site: Site) -> None:
        super().__init__()
        self.up = site.make("up", part.up)
        self.down = site.make("down", part.down)
        self._activation, self._kernels = part.activation, site.how.kernels

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before) -> tuple[Tensor, Tensor]:
        inner_TM, residual_TE = self.up.behind(x_TE, residual_TE, norm)
        return self.down(self._kernels.activated(inner_TM, self._activation)), residual_TE


class Block(nn.Module):
    def __init__(self, part: parts.Block, site: Site) -> None:
        super().__init__()
        self.mixer_norm = site.make("mixer_norm", part.mixer_norm)
        self.mixer = site.make("mixer", part.mixer)
        self.after_mixer = site.make("after_mixer", part.after_mixer)
        self.ffn_norm = site.make("ffn_norm", part.ffn_norm)
        self.ffn = site.make("ffn", part.ffn)
        self.after_ffn = site.make("after_ffn", part.after_ffn)
        self.beside, self.factor = site.make("beside", part.beside), site.make("factor", part.factor)
        self._scale, self._parallel, self._summed = part.scale, part.parallel, part.summed
        self._mixed, self._fed = (site.how.mesh if half in part.parted else ALONE for half in ("mixer", "ffn"))

    def forward(
        self,
        x_TE: Tensor,
        residual_TE: Tensor | None,
        angles: Sequence[Angles],
        vectors_TP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x is what the block before yielded, not yet added to the residual stream; returns the same pair. `vectors` are the
        tokens' for this layer."""
        if self._summed:
            return self._sums(x_TE, residual_TE, angles), None
        x_TE, residual_TE = self._halves(x_TE, residual_TE, angles)
        if self.beside is None and self.factor is None:
            return x_TE, residual_TE
        x_TE = x_TE + residual_TE
        if self.beside is not None:
            x_TE = x_TE + self.beside(x_TE, vectors_TP)
        return (x_TE if self.factor is None else self.factor(x_TE)), None

    def _sums(self, x_TE: Tensor, residual_TE: Tensor | None, angles: Sequence[Angles]) -> Tensor:
        """Of which the norms are, instead of what is added."""
        mixed_TE, x_TE = self.mixer(x_TE, residual_TE, None, angles)
        x_TE = self.after_mixer.join(self._mixed.sum(mixed_TE), x_TE)[0]
        inner_TE, x_TE = self.ffn(x_TE, None, None)
        normed_TE: Tensor = self.after_ffn.join(self._fed.sum(inner_TE), x_TE)[0]
        return normed_TE

    def _halves(self, x_TE: Tensor, residual_TE: Tensor | None, angles: Sequence[Angles]) -> tuple[Tensor, Tensor]:
        if self._parallel:
            mixed_TE, sum_TE = self.mixer(x_TE, residual_TE, _how(self.mixer_norm), angles)
            x_TE, _ = self.ffn(sum_TE, None, _how(self.ffn_norm or self.mixer_norm))
            if self._fed is self._mixed:
                return self._scaled(self._fed.sum(x_TE + mixed_TE)), sum_TE
            return self._scaled(self._fed.sum(x_TE) + self._mixed.sum(mixed_TE)), sum_TE
        x_TE, residual_TE = self.mixer(x_TE, residual_TE, _how(self.mixer_norm), angles)
        x_TE = self._after(self._mixed.sum(x_TE), self.after_mixer)
        x_TE, residual_TE = self.ffn(x_TE, residual_TE, _how(self.ffn_norm))
        return self._after(self._fed.sum(x_TE), self.after_ffn), residual_TE

    def _after(self, x_TE: Tensor, norm: Norm | None) -> Tensor:
        return self._scaled(x_TE if norm is None else norm(x_TE))

    def _scaled(self, x_TE: Tensor) -> Tensor:
        return x_TE if self._scale == 1.0 else x_TE * self._scale


def _how(norm: Norm | None) -> Before:
    return None if norm is None else norm.how


make.register(parts.Attention, Attention)
make.register(parts.Mlp, Mlp)
make.register(parts.PlainMlp, PlainMlp)
make.register(parts.Block, Block)
