"""The leaves, which hold the weights, and the rotary tables.

Suffix legend: T tokens, E hidden size (or head size), V vocabulary, P positions, F half of the rotated dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sapwood.arch import multiplied, parts, positions, sinks
from sapwood.arch.rope import axes, frequencies
from sapwood.arch.shard import Piece
from sapwood.attention.base import Batch
from sapwood.kernels import Activation, LayerNorm, RmsNorm
from sapwood.nn.make import Site, make
from sapwood.parallel import ALONE
from sapwood.quant.base import Leaf, Weights
from sapwood.quant.source import Source, plain


class Norm(Leaf):
    """A norm by `weight`, a float32 [E], or [N, E] with one row for each of N heads; layer norm with a `bias` of that shape
    or without."""

    refills = True

    def __init__(self, part: parts.Norm, site: Site, *, weight: Tensor | None = None) -> None:
        super().__init__()
        if weight is None:
            shape = (part.size,) if part.rows is None else (part.rows, part.size)
            weight = torch.empty(shape, device=site.how.device)
        self.part, self.eps, self._kernels = part, part.eps, site.how.kernels
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros_like(weight), requires_grad=False) if part.bias else None
        if not part.name:
            self.weight.fill_(1.0)

    def load(self, piece: Piece, source: Source) -> None:
        param = self.get_parameter(piece.param)
        whole = param.view(-1) if len(piece.target) < param.dim() and self.part.rows else param
        index: tuple[Any, ...] = (..., *piece.target)
        target = whole[index]
        target.copy_(plain(piece, source))
        if self.part.offset and piece.param == "weight":
            target.add_(self.part.offset)

    def randomize(self, random: torch.Generator) -> None:
        self.weight.fill_(1.0)

    @property
    def how(self) -> RmsNorm | LayerNorm:
        if self.part.center:
            return LayerNorm(self.weight, self.eps, self.bias)
        return RmsNorm(self.weight, self.eps)

    def forward(self, x_TE: Tensor) -> Tensor:
        return self._kernels.norm(x_TE, None, self.how)[0]

    def join(self, x_TE: Tensor, residual_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add x to the residual stream, if there is one yet; return the sum's norm and the sum."""
        return self._kernels.norm(x_TE, residual_TE, self.how)


class Embedding(Leaf):
    """Rows of weight_VE, scaled; of a rank's part of the vocabulary, with zeros for the tokens of others, until all are summed."""

    refills = True

    def __init__(self, part: parts.Embedding, site: Site) -> None:
        super().__init__()
        how = site.how
        weight_VE = torch.empty((part.vocab_size, part.hidden_size), device=how.device, dtype=how.dtype)
        self.weight = nn.Parameter(weight_VE, requires_grad=False)
        self._scale, self._kernels = torch.tensor(part.scale, dtype=how.dtype).item(), how.kernels
        self._first, self._count, self._mesh = part.first, part.vocab_size, how.mesh if site.parted else ALONE

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))

    def forward(self, ids_T: Tensor) -> Tensor:
        if self._mesh.size == 1:
            return self._kernels.embed(ids_T, self.weight, self._scale)
        own_T = ids_T - self._first
        others_T1 = ((own_T < 0) | (own_T >= self._count))[:, None]
        rows_TE = self._kernels.embed(own_T.clamp(0, self._count - 1), self.weight, self._scale)
        return self._mesh.sum(rows_TE.masked_fill_(others_T1, 0))

    def project(self, x_TE: Tensor) -> Tensor:
        """The logits [T, V] of a head that is tied to the embedding."""
        return self._kernels.linear(x_TE, self.weight)[0]


class Positions(Leaf):
    """A learned vector of each position, the rows of weight_PE."""

    refills = True

    def __init__(self, part: positions.Positions, site: Site) -> None:
        super().__init__()
        weight_PE = torch.empty((part.count, part.hidden_size), device=site.how.device, dtype=site.how.dtype)
        self.weight = nn.Parameter(weight_PE, requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))

    def forward(self, positions_T: Tensor) -> Tensor:
        return self.weight.index_select(0, positions_T)


class Segments(Leaf):
    """Rows of weight_CE by the text that a token belongs to."""

    refills = True

    def __init__(self, part: positions.Segments, site: Site) -> None:
        super().__init__()
        weight_CE = torch.empty((part.count, part.hidden_size), device=site.how.device, dtype=site.how.dtype)
        self.weight = nn.Parameter(weight_CE, requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))

    def forward(self, batch: Batch) -> Tensor:
        if batch.seconds_S is None or len(self.weight) < 2:
            return self.weight[0]
        second_R = batch.seconds_S[batch.slots_R]
        second_T = second_R.repeat_interleave(batch.counts_R, output_size=len(batch.positions_T))
        return self.weight[((second_T > 0) & (batch.positions_T >= second_T)).long()]


class Sinks(Leaf):
    """The float32 weight_H: a score of each query head."""

    refills = True

    def __init__(self, part: sinks.Sinks, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(part.count, device=site.how.device), requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))


def _linear(part: parts.Linear, site: Site) -> Weights:
    how, place = site.how, parts.Place(site.path, site.prefix, part)
    return how.method(place).create(place, how.device, how.dtype, how.kernels)


class Multiplied(nn.Module):
    """In the place of a Linear that others are computed behind."""

    def __init__(self, part: multiplied.Multiplied, site: Site) -> None:
        super().__init__()
        self.linear: Weights = site.make("linear", part.linear)
        sizes = torch.tensor([one.size for one in part.linear.parts])
        factors_O = torch.tensor(part.factors).repeat_interleave(sizes)
        self._factors_O, self._kernels = factors_O.to(site.how.device, site.how.dtype), site.how.kernels

    def behind(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm | LayerNorm | None, gate: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Weights.behind`."""
        y_TO, sum_TI = self.linear.behind(x_TI, residual_TI, norm)
        y_TO = y_TO * self._factors_O
        return (y_TO if gate is None else self._kernels.gated(y_TO, gate)), sum_TI


make.register(parts.Linear, _linear)
make.register(multiplied.Multiplied, Multiplied)
make.register(parts.Norm, Norm)
make.register(parts.Embedding, Embedding)
make.register(positions.Positions, Positions)
make.register(positions.Segments, Segments)
make.register(sinks.Sinks, Sinks)


class Angles(NamedTuple):
    """Float32 cos and sin of a step's tokens, for one rope, and what their queries are multiplied by."""

    cos_TF: Tensor
    sin_TF: Tensor
    sharp_T: Tensor | None = None


class Rotary(nn.Module):
    """Tables of cos and sin, made once, side by side so that one launch looks both up; and one of what queries are multiplied
    by, where the rope says so."""

    def __init__(self, rope: parts.Rope, num_positions: int, device: torch.device) -> None:
        super().__init__()
        spectrum = frequencies(rope, num_positions)
        radians_F = torch.tensor(spectrum.radians, dtype=torch.float32, device=device)
        angles_PF = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * radians_F
        self.both_2PF = torch.stack((angles_PF.cos(), angles_PF.sin())).mul_(spectrum.factor)
        self.sharp_P: Tensor | None = None
        if (sharpening := rope.sharpening) is not None:
            turns_P = torch.arange(num_positions, device=device).add_(sharpening.ahead) // sharpening.every
            self.sharp_P = 1 + sharpening.slope * torch.log1p(turns_P.float())

        self._axis_F = None if rope.sections is None else torch.tensor(axes(rope), device=device)

    def forward(self, positions_T: Tensor, turns_3T: Tensor | None = None) -> Angles:
        """By the position of each token, or, if the rope has sections and turns are given, each pair by one of the token's three."""
        if turns_3T is None or self._axis_F is None:
            cos_TF, sin_TF = self.both_2PF.index_select(1, positions_T)
        else:
            all_23TF = self.both_2PF.index_select(1, turns_3T.reshape(-1)).unflatten(1, turns_3T.shape)
            axes_1TF = self._axis_F.expand(1, turns_3T.shape[1], -1)
            cos_TF, sin_TF = (one_3TF.gather(0, axes_1TF)[0] for one_3TF in all_23TF)
        return Angles(cos_TF, sin_TF, None if self.sharp_P is None else self.sharp_P[positions_T])
