"""What there is beside mixers and feed-forwards.

Suffix legend: T tokens, E hidden size, L layers, P size of a layer's vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sapwood.arch import beside as parts
from sapwood.arch.shard import Piece
from sapwood.nn.make import Site, make
from sapwood.quant.base import Leaf
from sapwood.quant.source import Source, plain


class Factor(Leaf):
    """One number, or one of each dimension."""

    refills = True

    def __init__(self, part: parts.Factor, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(part.size, device=site.how.device), requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight.copy_(plain(piece, source))

    def randomize(self, random: torch.Generator) -> None:
        self.weight.fill_(1.0)

    def forward(self, x_TE: Tensor) -> Tensor:
        return (x_TE * self.weight).to(x_TE.dtype)


class Beside(nn.Module):
    def __init__(self, part: parts.Beside, site: Site) -> None:
        super().__init__()
        self.gate, self.out = site.make("gate", part.gate), site.make("out", part.out)
        self.norm = site.make("norm", part.norm)
        self._activation, self._kernels = part.activation, site.how.kernels

    def forward(self, x_TE: Tensor, vectors_TP: Tensor) -> Tensor:
        inner_TP = self._kernels.activated(self.gate(x_TE), self._activation) * vectors_TP
        normed_TE: Tensor = self.norm(self.out(inner_TP))
        return normed_TE


class Vectors(nn.Module):
    def __init__(self, part: parts.Vectors, site: Site) -> None:
        super().__init__()
        self.embed, self.project = site.make("embed", part.embed), site.make("project", part.project)
        self.norm = site.make("norm", part.norm)
        self._scale, self._size, self._known = part.scale, part.norm.size, part.embed.vocab_size

    def forward(self, ids_T: Tensor, x_TE: Tensor) -> Tensor:
        """vectors_TLP"""
        projected = (self.project(x_TE) * self._scale).view(-1, self._size)
        known_T = ids_T.masked_fill(ids_T >= self._known, 0)
        together = (self.norm(projected).view(len(ids_T), -1) + self.embed(known_T)) * 2**-0.5
        return together.unflatten(-1, (-1, self._size))


make.register(parts.Factor, Factor)
make.register(parts.Beside, Beside)
make.register(parts.Vectors, Vectors)
