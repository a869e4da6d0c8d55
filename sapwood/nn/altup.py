"""The modules of blocks that work on one of several streams.

Suffix legend: T tokens, S streams, E hidden size, M intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sapwood.arch import altup as parts
from sapwood.nn.block import Before, Block
from sapwood.nn.layers import Angles
from sapwood.nn.make import Site, make

_LEAST = 1e-5  # of a square of a magnitude that is divided by


class Laurel(nn.Module):
    def __init__(self, part: parts.Laurel, site: Site) -> None:
        super().__init__()
        self.left, self.right = site.make("left", part.left), site.make("right", part.right)
        self.norm = site.make("norm", part.norm)

    def forward(self, x_TE: Tensor) -> Tensor:
        added_TE: Tensor = self.norm(self.right(self.left(x_TE)))
        return x_TE + added_TE


class Altered(Block):
    def __init__(self, part: parts.Altered, site: Site) -> None:
        super().__init__(part, site)
        self.laurel, self.router = site.make("laurel", part.laurel), site.make("router", part.router)
        self.router_norm, self.scaled = site.make("router_norm", part.router_norm), site.make("scaled", part.scaled)
        self.predict, self.correct = site.make("predict", part.predict), site.make("correct", part.correct)

    def forward(
        self,
        x_TE: Tensor,
        residual_TE: Tensor | None,
        angles: Sequence[Angles],
        vectors_TP: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """x are the streams, [T, S, E], and nothing is left to be added to them."""
        streams_TSE = self._predicted(x_TE)
        before_TE = streams_TSE[:, 0].contiguous()
        normed_TE = self.mixer_norm(before_TE)
        mixed_TE, _ = self.mixer(normed_TE, None, None, angles)
        sum_TE = (before_TE + self.after_mixer(self._mixed.sum(mixed_TE)) + self.laurel(normed_TE)) * 2**-0.5
        fed_TE, _ = self.ffn(sum_TE, None, self.ffn_norm.how)
        sum_TE = sum_TE + self.after_ffn(self._fed.sum(fed_TE))
        far_TS = self.correct(self._modes(sum_TE)) + 1.0
        streams_TSE = streams_TSE + far_TS[..., None] * (sum_TE - before_TE)[:, None]
        first_TE = streams_TSE[:, 0].contiguous()
        added_TE = self.beside(first_TE if self.scaled is None else self.scaled(first_TE), vectors_TP)
        streams_TSE[:, 1:] += added_TE[:, None]
        return streams_TSE, None

    def _modes(self, x_TE: Tensor) -> Tensor:
        routed_TS: Tensor = self.router(self.router_norm(x_TE) / x_TE.shape[-1])
        return routed_TS.float().tanh().to(x_TE.dtype)

    def _predicted(self, streams_TSE: Tensor) -> Tensor:
        number = streams_TSE.shape[1]
        share_TSS = self.predict(self._modes(streams_TSE[:, 0].contiguous())).unflatten(-1, (number, number))
        return streams_TSE + torch.bmm(share_TSS, streams_TSE)


class Streams(nn.Module):
    def __init__(self, part: parts.Streams, site: Site) -> None:
        super().__init__()
        self.spread, self.gather = site.make("spread", part.spread), site.make("gather", part.gather)

    def begin(self, x_TE: Tensor) -> Tensor:
        """The streams, [T, S, E]."""
        others_TSE = self.spread(x_TE).unflatten(-1, (-1, x_TE.shape[-1]))
        return torch.cat((x_TE[:, None], _as_large(others_TSE, x_TE)), dim=1)

    def end(self, streams_TSE: Tensor) -> Tensor:
        """x_TE"""
        first_TE = streams_TSE[:, 0]
        number, size = streams_TSE.shape[1] - 1, streams_TSE.shape[2]
        all_TSSE = self.gather(streams_TSE[:, 1:].flatten(0, 1)).view(-1, number, number, size)
        others_TSE = all_TSSE.diagonal(dim1=1, dim2=2).mT  # each by its own part
        return torch.cat((first_TE[:, None], _as_large(others_TSE, first_TE)), dim=1).mean(dim=1)


def _as_large(x_TSE: Tensor, model_TE: Tensor) -> Tensor:
    """With the magnitude of another."""
    wanted_T11 = model_TE.square().mean(-1, keepdim=True).sqrt()[:, None]
    return x_TSE * wanted_T11 / x_TSE.square().mean(-1, keepdim=True).clamp(min=_LEAST).sqrt()


class SparseMlp(nn.Module):
    def __init__(self, part: parts.SparseMlp, site: Site) -> None:
        super().__init__()
        self.gate_up, self.down = site.make("gate_up", part.gate_up), site.make("down", part.down)
        self._part, self._kernels = part, site.how.kernels

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before) -> tuple[Tensor, Tensor]:
        both_TX, residual_TE = self.gate_up.behind(x_TE, residual_TE, norm)
        gate_TM, up_TM = both_TX.chunk(2, dim=-1)
        std_T1, mean_T1 = torch.std_mean(gate_TM, dim=-1, keepdim=True, unbiased=False)
        left_TM = torch.relu(gate_TM - (mean_T1 + self._part.deviations * std_T1))
        return self.down(self._kernels.activated(left_TM, self._part.activation) * up_TM), residual_TE


make.register(parts.Laurel, Laurel)
make.register(parts.Altered, Altered)
make.register(parts.Streams, Streams)
make.register(parts.SparseMlp, SparseMlp)
