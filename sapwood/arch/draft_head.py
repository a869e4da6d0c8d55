"""Heads that draft: a block that goes on from hidden states of the model whose next tokens it is to guess.

Two forms of what the block is given, of a token's embedding and of the feature of the position before it:

    with `join`       join([token_norm(embedding); feature_norm(feature)]) → the whole block
    without           [token_norm(embedding); feature_norm(feature)] → its mixer, and what that yields is added to the feature

The norms are optional. A feature is what the model made of a position: its hidden state after the last norm, or `feature` of those before
some layers; and, where the head goes on from its own guesses, what the head made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from sapwood.arch.parts import Axis, Block, Decoder, Embedding, Leaf, Linear, Norm, Part, StoredTensor
from sapwood.arch.share import WHOLE_MODEL, Stage


@dataclass(frozen=True)
class Words(Leaf):
    """The words of a smaller vocabulary: how far behind its number each stands in the large one."""

    name: str
    size: int
    vocab_size: int

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor("offsets", self.name, (Axis(self.size),)),)


@dataclass(frozen=True, kw_only=True)
class DraftHead:
    """A head. What is None of `embed` and `head` is the other model's; `taps` are the layers before which hidden states are
    taken, none for those after the last norm. The block's output, normed by `after`, is the feature that it goes on from, and `norm` of that
    is what `head` is given. Its tensors begin with `within`, and with none of `aside`."""

    architecture: str
    max_positions: int
    dtype: str | None
    vocab_size: int
    hidden_size: int
    blocks: tuple[Block, ...]
    block_prefix: str
    embed: Embedding | None = None
    taps: tuple[int, ...] = ()
    join: Linear | None = None
    feature: Linear | None = None
    token_norm: Norm | None = None
    feature_norm: Norm | None = None
    after: Norm | None = None
    norm: Norm | None = None
    head: Linear | None = None
    words: Words | None = None
    root: str = ""
    within: str = ""
    aside: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)

    portion: ClassVar[None] = None
    encoder: ClassVar[None] = None
    stage: ClassVar[Stage] = WHOLE_MODEL

    before: ClassVar[tuple[str, ...]] = ("embed", "join", "feature", "token_norm", "feature_norm")
    behind: ClassVar[tuple[str, ...]] = ("after", "norm", "head", "words")

    def owns(self, tensor: str) -> bool:
        return tensor.startswith(self.within) and not tensor.startswith(self.aside)


def head_beside(
    model: Decoder,
    block: Block,
    *,
    block_prefix: str,
    join: str,
    norms: tuple[str, str, str],
    within: str,
    aside: tuple[str, ...] = (),
) -> DraftHead:
    """The head that a checkpoint has beside its `model`, whose embedding and head it shares: `norms` are those of a token, of the feature
    before it, and of what the block yields."""
    assert model.norm is not None, "a model that writes has one before its head"
    token_norm, feature_norm, after = (replace(model.norm, name=name) for name in norms)
    return DraftHead(
        architecture=model.architecture,
        max_positions=model.max_positions,
        dtype=model.dtype,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        blocks=(block,),
        block_prefix=block_prefix,
        join=Linear(2 * model.hidden_size, (Part(join, model.hidden_size),), None),
        token_norm=token_norm,
        feature_norm=feature_norm,
        after=after,
        within=within,
        aside=aside,
    )
