"""The leaves, which hold the weights, and the rotary tables.

Suffix legend: T tokens, E hidden size (or head size), V vocabulary, P positions, F half of the rotated dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sapwood.arch import parts
from sapwood.arch.rope import frequencies
from sapwood.arch.shard import Piece
from sapwood.kernels import RmsNorm
from sapwood.nn.make import Site, make
from sapwood.quant.base import Leaf, Weights
from sapwood.quant.source import Source, plain


class Norm(Leaf):
    """RMS norm by `weight`, a float32 [E], or [N, E] with one row for each of N heads that share a norm."""

    def __init__(self, part: parts.Norm, site: Site, *, weight: Tensor | None = None) -> None:
        super().__init__()
        if weight is None:
            weight = torch.empty(part.size, device=site.how.device)
        self.eps, self._offset, self._kernels = part.eps, part.offset, site.how.kernels
        self.weight = nn.Parameter(weight, requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight.copy_(plain(piece, source))
        if self._offset:
            self.weight.add_(self._offset)

    def randomize(self, random: torch.Generator) -> None:
        self.weight.fill_(1.0)

    @property
    def rms(self) -> RmsNorm:
        return RmsNorm(self.weight, self.eps)

    def forward(self, x_TE: Tensor) -> Tensor:
        return self._kernels.rms_norm(x_TE, self.weight, self.eps)

    def join(self, x_TE: Tensor, residual_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add x to the residual stream, if there is one yet; return the sum's norm and the sum."""
        if residual_TE is None:
            return self._kernels.rms_norm(x_TE, self.weight, self.eps), x_TE
        return self._kernels.add_rms_norm(x_TE, residual_TE, self.weight, self.eps)


class Embedding(Leaf):
    """Rows of weight_VE, scaled."""

    def __init__(self, part: parts.Embedding, site: Site) -> None:
        super().__init__()
        how = site.how
        weight_VE = torch.empty((part.vocab_size, part.hidden_size), device=how.device, dtype=how.dtype)
        self.weight = nn.Parameter(weight_VE, requires_grad=False)
        self._scale, self._kernels = torch.tensor(part.scale, dtype=how.dtype).item(), how.kernels

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))

    def forward(self, ids_T: Tensor) -> Tensor:
        return self._kernels.embed(ids_T, self.weight, self._scale)

    def project(self, x_TE: Tensor) -> Tensor:
        """The logits [T, V] of a head that is tied to the embedding."""
        return self._kernels.linear(x_TE, self.weight)[0]


def _linear(part: parts.Linear, site: Site) -> Weights:
    how, place = site.how, parts.Place(site.path, site.prefix, part)
    return how.method(place).create(place, how.device, how.dtype, how.kernels)


make.register(parts.Linear, _linear)
make.register(parts.Norm, Norm)
make.register(parts.Embedding, Embedding)


class Angles(NamedTuple):
    """Float32 cos and sin of a step's tokens, for one rope."""

    cos_TF: Tensor
    sin_TF: Tensor


class Rotary(nn.Module):
    """Tables of cos and sin, made once, side by side so that one launch looks both up."""

    def __init__(self, rope: parts.Rope, num_positions: int, device: torch.device) -> None:
        super().__init__()
        spectrum = frequencies(rope)
        radians_F = torch.tensor(spectrum.radians, dtype=torch.float32, device=device)
        angles_PF = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * radians_F
        self.both_2PF = torch.stack((angles_PF.cos(), angles_PF.sin())).mul_(spectrum.factor)

    def forward(self, positions_T: Tensor) -> Angles:
        return Angles(*self.both_2PF.index_select(1, positions_T))
