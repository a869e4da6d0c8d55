"""Heads that draft: see `sapwood.arch.draft_head`.

Where the head stands at a position it knows the token there and a feature of the one before: what the other model made
of it, or, running ahead, what the head itself did. Nothing is before the first position: there its input is zero, and so
are its key and its value.

Suffix legend: T tokens, N rows that need logits, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sapwood.arch import draft_head as parts
from sapwood.arch.parts import ropes
from sapwood.arch.shard import Piece
from sapwood.attention.base import Batch
from sapwood.base.errors import ModelError
from sapwood.nn.block import Block
from sapwood.nn.layers import Norm, Rotary
from sapwood.nn.make import Build, Site, derive, make
from sapwood.nn.model import Model, sites
from sapwood.nn.native import NativeModel
from sapwood.quant.base import Leaf
from sapwood.quant.source import Source


class Words(Leaf):
    """`ids` are the words' numbers in the large vocabulary."""

    def __init__(self, part: parts.Words, site: Site) -> None:
        super().__init__()
        self._part = part
        self.offsets = nn.Parameter(
            torch.zeros(part.size, dtype=torch.int64, device=site.how.device), requires_grad=False
        )
        self.ids = torch.arange(part.size, device=site.how.device)

    def load(self, piece: Piece, source: Source) -> None:
        self.offsets[piece.target].copy_(source.read(piece.name, piece.source))

    def randomize(self, random: torch.Generator) -> None:
        pass  # the first words

    def finish(self) -> None:
        self.ids = self.ids + self.offsets
        low, high = int(self.ids.min()), int(self.ids.max())
        if low < 0 or high >= self._part.vocab_size:
            raise ModelError(f"{self._part.name} names the words {low} to {high} of {self._part.vocab_size}.")


make.register(parts.Words, Words)


class DraftHead(nn.Module):
    """A head for inference, for the model `target`: run it in inference mode, after its backend has planned the batch."""

    embed: Any
    join: Any
    feature: Any
    token_norm: Any
    feature_norm: Any
    after: Any
    norm: Any
    head: Any
    words: Any

    def __init__(self, head: parts.DraftHead, how: Build, target: Model | NativeModel) -> None:
        super().__init__()
        self.decoder, self.method, self.device = head, how.method, how.device
        self._target = (target,)  # no part of this module
        num_positions = min(how.max_positions or head.max_positions, head.max_positions)
        self.rotaries = nn.ModuleList(Rotary(rope, num_positions, how.device) for rope in ropes(head))
        for name in (*head.before, *head.behind):
            part = getattr(head, name)
            setattr(self, name, None if part is None else make(part, Site(how, name)))
        (site,) = sites(head, how)
        self.blocks = nn.ModuleList([make(head.blocks[0], site)])

    def leaf(self, path: str) -> Leaf:
        """The module of a part with weights."""
        return cast(Leaf, self.get_submodule(path))

    def finish(self) -> None:
        derive(self)

    def features(self, hidden_TE: Tensor, taken: Sequence[Tensor]) -> Tensor:
        """What the head goes on from: of hidden states after the last norm, or of those taken before its layers."""
        return hidden_TE if self.feature is None else cast(Tensor, self.feature(torch.cat(list(taken), dim=-1)))

    def forward(self, batch: Batch, feature_TE: Tensor) -> Tensor:
        """The head's own features of every token, given those before them."""
        (target,), block = self._target, cast(Block, self.blocks[0])
        angles = [rotary(batch.turned_T) for rotary in self.rotaries]
        follows_T1 = (batch.positions_T > 0)[:, None]
        embed = target.embed if self.embed is None else self.embed
        assert embed is not None, "heads go on from whole models"
        token_TE = embed(batch.ids_T)
        token_TE, feature_TE = token_TE * follows_T1, torch.where(follows_T1, feature_TE, 0)
        both_TX = torch.cat([_normed(token_TE, self.token_norm), _normed(feature_TE, self.feature_norm)], dim=-1)
        if self.join is not None:
            x_TE, residual_TE = block(self.join(both_TX) * follows_T1, None, angles)
        else:
            mixed_TE, _ = block.mixer(both_TX, None, None, angles)
            x_TE, residual_TE = block.ffn(mixed_TE, feature_TE, block.ffn_norm.how)
        return _normed(x_TE + residual_TE, self.after)

    def logits(self, feature_NE: Tensor) -> Tensor:
        """Logits_NV, as products yield them: none of words that the head does not know."""
        feature_NE = _normed(feature_NE, self.norm)
        if self.head is None:
            return self._target[0].logits(feature_NE, raw=True)
        logits_NW: Tensor = self.head(feature_NE)
        if self.words is None:
            return logits_NW
        logits_NV = logits_NW.new_full((len(logits_NW), self.decoder.vocab_size), float("-inf"))
        return logits_NV.index_copy_(1, self.words.ids, logits_NW)


def _normed(x_TE: Tensor, norm: Norm | None) -> Tensor:
    return x_TE if norm is None else norm(x_TE)
