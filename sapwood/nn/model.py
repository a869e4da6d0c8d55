"""The whole model.

Suffix legend: T tokens, N rows that need logits, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import sapwood.nn.altup
import sapwood.nn.beside
import sapwood.nn.branches
import sapwood.nn.classifier
import sapwood.nn.experts
import sapwood.nn.latent
import sapwood.nn.reader
import sapwood.nn.recurrent
import sapwood.nn.sight  # noqa: F401  they register the makers of the parts inside a block
from sapwood.arch.groups import fixed_of, kv_places
from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder, Tied, ropes
from sapwood.arch.shard import widths
from sapwood.attention.base import Batch
from sapwood.base.kv import KVKind
from sapwood.base.media import Media
from sapwood.nn.block import Attention
from sapwood.nn.layers import Embedding, Norm, Rotary
from sapwood.nn.make import Build, Site, derive, make
from sapwood.nn.reader import Twofold
from sapwood.quant.base import Leaf


class Model(nn.Module):
    """A decoder for inference: run it in inference mode, after every backend has planned the batch."""

    def __init__(self, decoder: Decoder, how: Build) -> None:
        super().__init__()
        self.decoder, self.method, self.device, self._dtype = decoder, how.method, how.device, how.dtype
        num_positions = min(how.max_positions or decoder.max_positions, decoder.max_positions)
        self.rotaries = nn.ModuleList(Rotary(rope, num_positions, how.device) for rope in ropes(decoder))
        stage = decoder.stage
        site = Site(how, "embed", parted="embed" in decoder.parted)
        self.embed: Embedding | None = make(decoder.embed, site) if stage.begins or stage.tied else None
        self.positions = self._end("positions", how)
        self.segments = self._end("segments", how)
        self.embed_norm: Norm | None = self._end("embed_norm", how)
        self.blocks = nn.ModuleList(
            make(block, site) for block, site in zip(decoder.blocks, sites(decoder, how), strict=True)
        )
        self.relative = None if decoder.relative is None else make(decoder.relative, Site(how, "relative"))
        self.encoder = None if decoder.encoder is None else make(decoder.encoder, Site(how, "encoder"))
        self.vectors = None if decoder.vectors is None else make(decoder.vectors, Site(how, "vectors"))
        self.streams = None if decoder.streams is None else make(decoder.streams, Site(how, "streams"))
        for block, part in zip(self.blocks, decoder.blocks, strict=True):
            if part.shares is not None:
                cast(Attention, block.mixer).share(cast(Attention, self.blocks[part.shares].mixer))
        self.norm: Norm | None = self._end("norm", how)
        tied = isinstance(decoder.head, Tied) and stage.ends
        self.head = None if isinstance(decoder.head, Tied) else self._end("head", how)
        self._tied = how.tied(self.embed.project, how) if tied and self.embed is not None else None
        self.classifier = self._end("classifier", how)
        self.logit_offsets = self._end("logit_offsets", how)
        self._looked = how.looked(how)
        self._mesh, self._widths, self._pool, self._pipe = how.mesh, widths(decoder), how.pool, how.pipe

    def _end(self, name: str, how: Build) -> Any:
        """What is before or behind the blocks, if it is there and with this stage."""
        stage, part = self.decoder.stage, getattr(self.decoder, name)
        here = stage.begins if name in self.decoder.before else stage.ends
        return make(part, Site(how, name)) if here and part is not None else None

    def leaf(self, path: str) -> Leaf:
        """The module of a part with weights."""
        return cast(Leaf, self.get_submodule(path))

    def finish(self) -> None:
        """All leaves have their weights."""
        derive(self)

    def forward(self, batch: Batch) -> Tensor:
        """The hidden states of every token after the last norm, hidden_TD."""
        return self.states(batch, ())[0]

    def read(self, media: Sequence[Media], entries: Sequence[int]) -> Tensor:
        """Let the encoder read inputs, and keep in the pool's entries what the blocks see of them. Returns its last states, one
        input's behind the other's."""
        assert self.encoder is not None and self._pool is not None, "asked only of those that have one"
        states_TE, lengths = self.encoder(media, self.embed)
        for block in self.blocks:
            cast(Twofold, block.mixer).cross.keep(states_TE, entries, lengths)
        for entry, length in zip(entries, lengths, strict=True):
            self._pool.measure(entry, length)
        return cast(Tensor, states_TE)

    def states(self, batch: Batch, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The same, and those before the layers of `taps`."""
        taken: dict[int, Tensor] = {}
        seen = None if self.encoder is None else batch.seen
        turns_3T = None if seen is None else seen.turns_3T
        angles = [rotary(batch.turned_T, turns_3T) for rotary in self.rotaries]
        x_TD, residual_TD = self._begun(batch), None
        vectors_TLP = None if self.vectors is None else self.vectors(batch.ids_T, x_TD)
        if self.streams is not None:
            x_TD = self.streams.begin(x_TD)
        for index, block in enumerate(self.blocks):
            if index in taps:
                taken[index] = x_TD.clone() if residual_TD is None else x_TD + residual_TD
            of_layer = () if vectors_TLP is None else (vectors_TLP[:, index],)
            x_TD, residual_TD = block(x_TD, residual_TD, angles, *of_layer)
            if seen is not None:
                x_TD = seen.behind(index, x_TD)
        if self.streams is not None:
            x_TD = self.streams.end(x_TD)
        if self.norm is not None:
            x_TD = self.norm.join(x_TD, residual_TD)[0]
        elif residual_TD is not None:
            x_TD = x_TD + residual_TD
        if not self.decoder.stage.ends:
            self._pipe.give(x_TD)
        return x_TD, [taken[index] for index in taps]

    def _begun(self, batch: Batch) -> Tensor:
        """What the first block here begins with."""
        if not self.decoder.stage.begins:
            like_TD = torch.empty(
                len(batch.ids_T), self.decoder.hidden_size, dtype=self._dtype, device=batch.ids_T.device
            )
            return self._pipe.take(like_TD)
        assert self.embed is not None
        x_TD: Tensor = self._looked(self.embed(batch.ids_T), batch.ids_T)
        if self.encoder is not None and batch.seen is not None:
            x_TD = batch.seen.among(x_TD)
        if self.positions is not None:
            x_TD = x_TD + self.positions(batch.turned_T)
        if self.segments is not None:
            x_TD = x_TD + self.segments(batch)
        return x_TD if self.embed_norm is None else self.embed_norm(x_TD)

    def classify(self, vectors_ND: Tensor) -> Tensor:
        """float32 scores of the labels."""
        assert self.classifier is not None, "asked only of those that have one"
        scores_NL: Tensor = self.classifier(vectors_ND)
        return scores_NL

    def logits(self, hidden_ND: Tensor, *, raw: bool = False) -> Tensor:
        """Logits_NV of some of the hidden states, in float32 or, if `raw`, in the dtype of the product."""
        head = self.head or self._tied
        assert head is not None, "a stage that ends has what is the head"
        logits_NV: Tensor = head(hidden_ND)
        if self._widths is not None:
            logits_NV = self._mesh.gather(logits_NV, self._widths)
        if self.logit_offsets is not None:
            logits_NV = self.logit_offsets(logits_NV)
        return finished(self.decoder, logits_NV, raw=raw)


def finished(decoder: Decoder, products_NV: Tensor, *, raw: bool = False) -> Tensor:
    """Logits from the head's products: scaled and capped in float32; in their own dtype, or, unless `raw`, in float32."""
    if decoder.logit_scale == 1.0 and decoder.logit_cap is None:
        return products_NV if raw else products_NV.float()
    logits_NV = products_NV.float()
    if decoder.logit_scale != 1.0:
        logits_NV = logits_NV * decoder.logit_scale
    if (cap := decoder.logit_cap) is not None:
        logits_NV = (logits_NV / cap).tanh_().mul_(cap)
    return logits_NV.to(products_NV.dtype) if raw else logits_NV


def sites(decoder: Network, how: Build) -> Iterator[Site]:
    """Of the blocks."""
    found, fixed = ropes(decoder), fixed_of(decoder)
    for index, kept in enumerate(kv_places(decoder)):
        places: dict[KVKind, tuple[Any, int]] = {
            kind: (how.backends[place.group], place.layer) for kind, place in kept.items()
        }
        if fixed is not None:
            places[fixed[0]] = how.pool, index
        yield Site(how, f"blocks.{index}", decoder.block_prefix.format(index), found, places)
