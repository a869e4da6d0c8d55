"""Encoders of encoder-decoders, and the attention by which decoders see what they leave.

Suffix legend: T positions of all inputs, one behind the other, or tokens of a step, B recordings, M moments, E hidden size, H heads,
D head size, V vocabulary, P distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.arch import parts, positions, reader
from sapwood.arch.shard import Piece
from sapwood.attention.base import Batch, RowLimits
from sapwood.attention.fixed import FixedPool
from sapwood.attention.whole import WholeTexts
from sapwood.base.kv import KVGroup, KVKind
from sapwood.base.media import Media
from sapwood.nn.block import Attention, Before
from sapwood.nn.layers import Angles, Norm, Rotary
from sapwood.nn.make import Derived, Site, make
from sapwood.quant.base import Leaf
from sapwood.quant.source import Source, plain


class Conv(Leaf):
    """weight [out, in, width] and bias [out]."""

    def __init__(self, part: reader.Conv, site: Site) -> None:
        super().__init__()
        shape = (part.out, part.inp, part.width)
        weight, bias_O = (
            torch.zeros(size, device=site.how.device, dtype=site.how.dtype) for size in (shape, shape[:1])
        )
        self.weight, self.bias = (nn.Parameter(one, requires_grad=False) for one in (weight, bias_O))
        self._part = part

    def load(self, piece: Piece, source: Source) -> None:
        self.get_parameter(piece.param)[piece.target].copy_(plain(piece, source))

    def forward(self, x_BIM: Tensor) -> Tensor:
        part = self._part
        return F.conv1d(x_BIM, self.weight, self.bias, stride=part.stride, padding=part.width // 2)


class AudioStem(nn.Module):
    def __init__(self, part: reader.AudioStem, site: Site) -> None:
        super().__init__()
        self.first, self.second = site.make("first", part.first), site.make("second", part.second)
        self._activation, self._kernels = part.activation, site.how.kernels

    def forward(self, features_BIM: Tensor) -> Tensor:
        """[recordings, moments, E], half as many moments as there were."""
        moments_BEM = self._bent(self.second(self._bent(self.first(features_BIM))))
        return moments_BEM.transpose(1, 2).contiguous()  # of one recording it would be a view that kernels do not read

    def _bent(self, x_BEM: Tensor) -> Tensor:
        return self._kernels.activated(x_BEM.flatten(0, 1), self._activation).view_as(x_BEM)


class Offsets(Leaf):
    """weight_V, float32, zeros where the checkpoint has none."""

    def __init__(self, part: reader.Offsets, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, part.count, device=site.how.device), requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))

    def forward(self, logits_NV: Tensor) -> Tensor:
        return (logits_NV.float() + self.weight).to(logits_NV.dtype)


class Relative(Leaf, Derived):
    """weight [buckets, H]; the backends that it is told to have it as a table by distance."""

    def __init__(self, part: reader.Relative, site: Site, backends: Sequence[Any] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(part.buckets, part.num_heads, device=site.how.device), requires_grad=False
        )
        self._part = part
        self._backends: Sequence[Any] = backends or site.how.backends
        self._told: Sequence[Any] | None = None

    def load(self, piece: Piece, source: Source) -> None:
        self.weight[piece.target].copy_(plain(piece, source))

    def derive(self) -> None:
        """Of keys `longest` positions before the query to the query itself, or to as many behind it; further ones are alike."""
        part = self._part
        ahead_P = torch.arange(-part.longest, part.longest + 1 if part.both else 1)
        buckets_P = _buckets(ahead_P, part.buckets, part.longest, both=part.both)
        table_HP = self.weight[buckets_P.to(self.weight.device)].T.contiguous()
        if self._told is None:  # of what serves both texts, the first has told what is its own
            self._told = [backend for backend in self._backends if getattr(backend, "relative_HP", False) is None]
        for backend in self._told:
            backend.relative_HP = table_HP


def _buckets(ahead_P: Tensor, count: int, longest: int, *, both: bool) -> Tensor:
    """The bucket of each key that is so many positions ahead of its query, in float32 as the models were trained."""
    first_P = torch.zeros_like(ahead_P)
    if both:
        count //= 2
        first_P = (ahead_P > 0).long() * count
        distance_P = ahead_P.abs()
    else:
        distance_P = -ahead_P.clamp(max=0)
    exact = count // 2
    steps_P = torch.log(distance_P.float() / exact) / math.log(longest / exact) * (count - exact)
    wide_P = (exact + steps_P.clamp(min=0).long()).clamp(max=count - 1)
    return first_P + torch.where(distance_P < exact, distance_P, wide_P)


class Sinusoids(nn.Module):
    """Computed, in no checkpoint."""

    def __init__(self, part: positions.Sinusoids, site: Site) -> None:
        super().__init__()
        half = part.hidden_size // 2
        slowest = half if part.whole else half - 1
        waves = np.exp(np.arange(half) * -(math.log(10000) / slowest))
        radians = (np.arange(part.count) + part.offset)[:, None] * waves
        table = np.concatenate([np.sin(radians), np.cos(radians)], axis=1)
        if part.hidden_size % 2:
            table = np.pad(table, ((0, 0), (0, 1)))
        self.table_PE = torch.from_numpy(table.astype(np.float32)).to(site.how.device, site.how.dtype)

    def forward(self, positions_T: Tensor) -> Tensor:
        return self.table_PE.index_select(0, positions_T)


class CrossAttention(nn.Module):
    def __init__(self, part: reader.CrossAttention, site: Site) -> None:
        super().__init__()
        self.query, self.keys_values = site.make("query", part.query), site.make("keys_values", part.keys_values)
        self.out = site.make("out", part.out)
        self._part, self._layer = part, site.number
        self._pool: FixedPool = site.backend

    def keep(self, states_TE: Tensor, entries: Sequence[int], lengths: Sequence[int]) -> None:
        """Make this layer's keys and values of the encoder's states of several inputs, and put them into their entries."""
        both_T2HD = self.keys_values(states_TE).unflatten(-1, (2, self._part.num_heads, self._part.head_dim))
        for entry, one_L2HD in zip(entries, both_T2HD.split(list(lengths)), strict=True):
            self._pool.write(self._layer, entry, one_L2HD[:, 0], one_L2HD[:, 1])

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before) -> tuple[Tensor, Tensor]:
        q_TX, residual_TE = self.query.behind(x_TE, residual_TE, norm)
        q_THD = q_TX.unflatten(-1, (self._part.num_heads, self._part.head_dim))
        return self.out(self._pool.run(self._layer, q_THD, self._part.scale).flatten(1)), residual_TE


class Twofold(nn.Module):
    def __init__(self, part: reader.Twofold, site: Site) -> None:
        super().__init__()
        self.own: Attention = site.make("own", part.own)
        self.norm: Norm = site.make("norm", part.norm)
        self.cross: CrossAttention = site.make("cross", part.cross)
        self._summed = part.summed

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: Before, angles: Sequence[Angles]
    ) -> tuple[Tensor, Tensor]:
        mixed_TE, sum_TE = self.own(x_TE, residual_TE, norm, angles)
        if self._summed:
            return self.cross(self.norm.join(mixed_TE, sum_TE)[0], None, None)
        return self.cross(mixed_TE, sum_TE, self.norm.how)


class Reader(nn.Module):
    """The encoder; `embed` makes vectors of the tokens of those that read texts."""

    def __init__(self, part: reader.Reader, site: Site) -> None:
        super().__init__()
        how, self._part, self._device = site.how, part, site.how.device
        kinds = list(dict.fromkeys(block.mixer.kv for block in part.blocks))
        groups = [KVGroup(_one(kind), len(part.blocks), 1) for kind in kinds]
        self._backends = [WholeTexts(group, index, how.device, how.dtype) for index, group in enumerate(groups)]
        places: dict[KVKind, tuple[Any, int]] = {g.kind: (b, 0) for g, b in zip(groups, self._backends, strict=True)}
        self.rotary = Rotary(parts.STILL, part.longest, how.device)
        self.stem: AudioStem | None = site.make("stem", part.stem)
        self.positions = site.make("positions", part.positions)
        self.embed_norm: Norm | None = site.make("embed_norm", part.embed_norm)
        self.relative = None
        if part.relative is not None:
            self.relative = Relative(part.relative, site, self._backends)
        self.blocks = nn.ModuleList(
            make(block, Site(how, f"{site.path}.blocks.{i}", part.block_prefix.format(i), (parts.STILL,), places))
            for i, block in enumerate(part.blocks)
        )
        self.norm: Norm | None = site.make("norm", part.norm)

    def forward(self, media: Sequence[Media], embed: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[int]]:
        """The last states of all inputs, one behind the other, and how many each has."""
        lengths = [one.length for one in media]
        x_TE, residual_TE = self._begin(media, embed), None
        places_T = torch.cat([torch.arange(length) for length in lengths]).to(self._device)
        if self.positions is not None:
            x_TE = x_TE + self.positions(places_T)
        if self.embed_norm is not None:
            x_TE = self.embed_norm(x_TE)
        batch = _batch(lengths, places_T)
        for backend in self._backends:
            backend.plan(batch)
        angles = [self.rotary(places_T)]
        for block in self.blocks:
            x_TE, residual_TE = block(x_TE, residual_TE, angles)
        if self.norm is not None:
            return self.norm.join(x_TE, residual_TE)[0], lengths
        return (x_TE if residual_TE is None else x_TE + residual_TE), lengths

    def _begin(self, media: Sequence[Media], embed: Callable[[Tensor], Tensor]) -> Tensor:
        if self.stem is None:
            ids = np.concatenate([one.arrays["ids"].numpy() for one in media]).astype(np.int64)
            return embed(torch.from_numpy(ids).to(self._device))
        features = np.stack([one.arrays["features"].numpy() for one in media]).astype(np.float32)
        dtype = self.stem.first.weight.dtype
        x_BME: Tensor = self.stem(torch.from_numpy(features).to(self._device, dtype))
        return x_BME.flatten(0, 1)


def _one(kind: KVKind | tuple[KVKind, ...] | None) -> KVKind:
    assert kind is not None and not isinstance(kind, tuple), "an encoder's blocks attend and do nothing else"
    return kind


def _batch(lengths: Sequence[int], places_T: Tensor) -> Batch:
    """As attention to whole texts reads it; what the host has to know stays there."""
    counts = torch.tensor(lengths, dtype=torch.int32)
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    offsets[1:] = counts.cumsum(0)
    rows = torch.arange(len(lengths), dtype=torch.int32)
    return Batch(
        ids_T=places_T,
        positions_T=places_T,
        slots_R=rows,
        starts_R=torch.zeros_like(rows),
        counts_R=counts,
        offsets_R1=offsets,
        tables_GSP=(),
        cells_GT=(),
        limits=RowLimits(0, len(lengths)),
    )


make.register(reader.Conv, Conv)
make.register(reader.AudioStem, AudioStem)
make.register(reader.Offsets, Offsets)
make.register(reader.Relative, Relative)
make.register(positions.Sinusoids, Sinusoids)
make.register(reader.CrossAttention, CrossAttention)
make.register(reader.Twofold, Twofold)
make.register(reader.Reader, Reader)
