"""The modules of mixers that carry a state.

Suffix legend: T tokens, E hidden size, C channels of a convolution, W its width, H heads, G groups that share keys and queries,
K size of a state's keys, V head size, X = H * V.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.arch import recurrent
from sapwood.arch.shard import Piece
from sapwood.attention.states import StateBackend
from sapwood.nn.block import Before
from sapwood.nn.layers import Angles
from sapwood.nn.make import Site, make
from sapwood.quant.base import Leaf
from sapwood.quant.source import Source, plain


class Conv(Leaf):
    """weight_C1W and bias_C, float32."""

    refills = True

    def __init__(self, part: recurrent.Conv, site: Site) -> None:
        super().__init__()
        weight_C1W = torch.empty((part.channels, 1, part.width), device=site.how.device)
        self.weight = nn.Parameter(weight_C1W, requires_grad=False)
        bias_C = torch.zeros(part.channels, device=site.how.device) if part.bias else None
        self.bias = None if bias_C is None else nn.Parameter(bias_C, requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        whole = self.get_parameter(piece.param)
        flat = whole[:, 0] if whole.dim() == 3 and len(piece.target) == 2 else whole
        flat[piece.target].copy_(plain(piece, source))

    @property
    def weight_CW(self) -> Tensor:
        return self.weight[:, 0]


class PerHead(Leaf):
    """weight_H, or [H, each], float32."""

    refills = True

    def __init__(self, part: recurrent.PerHead, site: Site) -> None:
        super().__init__()
        shape = (part.count,) if part.each is None else (part.count, part.each)
        self.weight = nn.Parameter(torch.empty(shape, device=site.how.device), requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))


class ShortConv(nn.Module):
    def __init__(self, part: recurrent.ShortConv, site: Site) -> None:
        super().__init__()
        self.inp, self.conv, self.out = (site.make(name, getattr(part, name)) for name in ("inp", "conv", "out"))
        self._backend: StateBackend = site.backend
        self._layer = site.number

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        inner_T3C, residual_TE = self.inp.behind(x_TE, residual_TE, norm)
        before_TC, behind_TC, x_TC = inner_T3C.chunk(3, dim=-1)
        y_TC = self._backend.conv(self._layer, 0, before_TC * x_TC, self.conv.weight_CW, self.conv.bias)
        return self.out(behind_TC * y_TC), residual_TE


class Mamba1(nn.Module):
    def __init__(self, part: recurrent.Mamba1, site: Site) -> None:
        super().__init__()
        self.inp, self.conv, self.select = (site.make(name, getattr(part, name)) for name in ("inp", "conv", "select"))
        self.step, self.a_log, self.d = (site.make(name, getattr(part, name)) for name in ("step", "a_log", "d"))
        self.step_norm, self.b_norm, self.c_norm = (
            site.make(name, getattr(part, name)) for name in ("step_norm", "b_norm", "c_norm")
        )
        self.out = site.make("out", part.out)
        self._widths, self._layer = (part.step.inp, part.state_size, part.state_size), site.number
        self._backend: StateBackend = site.backend

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        run = self._backend
        inner_TX, residual_TE = self.inp.behind(x_TE, residual_TE, norm)
        x_TC, gate_TC = inner_TX.chunk(2, dim=-1)
        x_TC = F.silu(run.conv(self._layer, 0, x_TC, self.conv.weight_CW, self.conv.bias))
        few_TX, k_TK, q_TK = (
            some_TX if norm is None else norm(some_TX.contiguous())
            for some_TX, norm in zip(
                self.select(x_TC).split(self._widths, dim=-1), (self.step_norm, self.b_norm, self.c_norm), strict=True
            )
        )
        dt_TC = F.softplus(self.step(few_TX).float())
        decay_TCK = -self.a_log.weight.exp() * dt_TC[..., None]
        y_TCV = run.scan(self._layer, 1, q_TK[:, None], k_TK[:, None], (x_TC.float() * dt_TC)[..., None], decay_TCK)
        y_TC = (y_TCV[..., 0] + self.d.weight * x_TC) * F.silu(gate_TC.float())
        return self.out(y_TC.to(gate_TC.dtype)), residual_TE


class Mamba2(nn.Module):
    def __init__(self, part: recurrent.Mamba2, site: Site) -> None:
        super().__init__()
        self.inp, self.conv, self.out = (site.make(name, getattr(part, name)) for name in ("inp", "conv", "out"))
        self.dt_bias, self.a_log, self.d = (site.make(name, getattr(part, name)) for name in ("dt_bias", "a_log", "d"))
        self.norm = site.make("norm", part.norm)
        self._part, self._layer = part, site.number
        self._backend: StateBackend = site.backend

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        part, run = self._part, self._backend
        inner_TY, residual_TE = self.inp.behind(x_TE, residual_TE, norm)
        gate_TX, x_TC, steps_TH = inner_TY.split(_widths(part), dim=-1)
        x_TC = F.silu(run.conv(self._layer, 0, x_TC, self.conv.weight_CW, self.conv.bias))
        shared = part.num_groups * part.state_size
        x_TX, k_TX, q_TX = x_TC.split([part.num_heads * part.head_dim, shared, shared], dim=-1)
        x_THV = x_TX.unflatten(-1, (part.num_heads, part.head_dim))
        k_TGK, q_TGK = (shared_TX.unflatten(-1, (part.num_groups, part.state_size)) for shared_TX in (k_TX, q_TX))
        dt_TH = F.softplus(steps_TH.float() + self.dt_bias.weight).clamp(*part.limits)
        decay_TH = -self.a_log.weight.exp() * dt_TH
        y_THV = run.scan(self._layer, 1, q_TGK, k_TGK, x_THV.float() * dt_TH[..., None], decay_TH)
        y_TX = (y_THV + self.d.weight[:, None] * x_THV).flatten(1)
        return self.out(self._gated(y_TX, gate_TX.float()).to(gate_TX.dtype)), residual_TE

    def _gated(self, y_TX: Tensor, gate_TX: Tensor) -> Tensor:
        """And normed, if there is a norm."""
        if not self._part.gated_last:
            y_TX = y_TX * F.silu(gate_TX)
        if self.norm is not None:
            y_TX = grouped_norm(y_TX, self.norm.weight, self.norm.eps, self._part.num_groups)
        return y_TX * F.silu(gate_TX) if self._part.gated_last else y_TX


def _widths(part: recurrent.Mamba2) -> list[int]:
    inner = part.num_heads * part.head_dim
    return [inner, part.conv.channels, part.num_heads]


def grouped_norm(x_TX: Tensor, weight_X: Tensor, eps: float, groups: int) -> Tensor:
    """RMS norm, each of so many groups of columns by itself."""
    x_TGX = x_TX.unflatten(-1, (groups, -1))
    x_TGX = x_TGX * torch.rsqrt(x_TGX.square().mean(-1, keepdim=True) + eps)
    return x_TGX.flatten(1) * weight_X


class DeltaNet(nn.Module):
    def __init__(self, part: recurrent.DeltaNet, site: Site) -> None:
        super().__init__()
        self.inp, self.conv, self.out = (site.make(name, getattr(part, name)) for name in ("inp", "conv", "out"))
        self.dt_bias, self.a_log, self.norm = (
            site.make(name, getattr(part, name)) for name in ("dt_bias", "a_log", "norm")
        )
        self._part, self._layer = part, site.number
        self._backend: StateBackend = site.backend

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        part, run = self._part, self._backend
        inner_TY, residual_TE = self.inp.behind(x_TE, residual_TE, norm)
        heads, shared = part.num_heads, part.num_groups * part.state_size
        values = heads * part.head_dim
        x_TC, gate_TX, b_TH, a_TH = inner_TY.split([2 * shared + values, values, heads, heads], dim=-1)
        x_TC = F.silu(run.conv(self._layer, 0, x_TC, self.conv.weight_CW, self.conv.bias))
        q_TX, k_TX, v_TX = x_TC.split([shared, shared, values], dim=-1)
        q_TGK, k_TGK = (_unit(shared_TX.unflatten(-1, (part.num_groups, -1))) for shared_TX in (q_TX, k_TX))
        decay_TH = -self.a_log.weight.exp() * F.softplus(a_TH.float() + self.dt_bias.weight)
        v_THV = v_TX.unflatten(-1, (heads, -1)).float()
        y_THV = run.scan(self._layer, 1, q_TGK * part.state_size**-0.5, k_TGK, v_THV, decay_TH, b_TH.float().sigmoid())
        y_TX = grouped_norm(y_THV.flatten(1), self.norm.weight.repeat(heads), self.norm.eps, heads)
        return self.out((y_TX * F.silu(gate_TX.float())).to(x_TE.dtype)), residual_TE


def _unit(x_TGK: Tensor) -> Tensor:
    """Of length 1."""
    x_float = x_TGK.float()
    return (x_float * torch.rsqrt(x_float.square().sum(-1, keepdim=True) + 1e-6)).to(x_TGK.dtype)


class Together(nn.Module):
    def __init__(self, part: recurrent.Together, site: Site) -> None:
        super().__init__()
        self.first, self.second = site.make("first", part.first), site.make("second", part.second)
        self._scales = part.scales

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        first_TE, sum_TE = self.first(x_TE, residual_TE, norm, angles)
        second_TE, _ = self.second(sum_TE, None, norm, angles)
        return self._scales[0] * first_TE + self._scales[1] * second_TE, sum_TE


class Skip(nn.Module):
    def __init__(self, part: recurrent.Skip, site: Site) -> None:
        super().__init__()

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, *others: object) -> tuple[Tensor, Tensor | None]:
        return x_TE, residual_TE


make.register(recurrent.Conv, Conv)
make.register(recurrent.PerHead, PerHead)
make.register(recurrent.ShortConv, ShortConv)
make.register(recurrent.Mamba1, Mamba1)
make.register(recurrent.Mamba2, Mamba2)
make.register(recurrent.DeltaNet, DeltaNet)
make.register(recurrent.Together, Together)
make.register(recurrent.Skip, Skip)
