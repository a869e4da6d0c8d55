"""Encoder-decoders: an encoder that reads a text or a recording whole, and decoder blocks whose tokens look at what it made of it.

What the encoder leaves is its last states, of which each decoder block makes keys and values of its own once (`Fixed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from sapwood.arch.encoder import Encoder
from sapwood.arch.parts import (
    Activation,
    Attention,
    Axis,
    Block,
    Leaf,
    Linear,
    Norm,
    Place,
    StoredTensor,
    leaves,
)
from sapwood.arch.positions import Positions, Sinusoids
from sapwood.base.kv import Fixed, Heads, Whole
from sapwood.base.media import Kind


@dataclass(frozen=True)
class Partial(Linear):
    """A Linear of which the parts numbered `bare` have no bias in a checkpoint; theirs is 0."""

    bare: tuple[int, ...] = ()

    def tensors(self) -> tuple[StoredTensor, ...]:
        names = {f"{self.parts[index].name}.bias" for index in self.bare}
        return tuple(replace(one, optional=True) if one.name in names else one for one in super().tensors())


@dataclass(frozen=True)
class Relative(Leaf):
    """A learned number for each head and bucket of distances, added to scores (T5; Raffel et al., 2020).

    Half of the buckets are for one distance each, the others for ever more of them, up to `longest`. `both`: keys behind the query
    have half of the buckets to themselves; else there are none.
    """

    name: str
    buckets: int
    num_heads: int
    longest: int
    both: bool

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor("weight", f"{self.name}.weight", (Axis(self.buckets), Axis(self.num_heads))),)


@dataclass(frozen=True)
class Offsets(Leaf):
    """A number for each token of the vocabulary, added to its logit; a checkpoint may lack it, and then it is 0."""

    name: str
    count: int

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor("weight", self.name, (Axis(1), Axis(self.count)), optional=True),)


@dataclass(frozen=True)
class Conv(Leaf):
    """A convolution over time with a bias: `width` positions, `stride` apart, zeros around."""

    name: str
    inp: int
    out: int
    width: int
    stride: int

    def tensors(self) -> tuple[StoredTensor, ...]:
        weight = StoredTensor("weight", f"{self.name}.weight", (Axis(self.out), Axis(self.inp), Axis(self.width)))
        return weight, StoredTensor("bias", f"{self.name}.bias", (Axis(self.out),))


@dataclass(frozen=True)
class AudioStem:
    """activation(second(activation(first(x)))) of the spectrum's `bins` at each moment."""

    bins: int
    first: Conv
    second: Conv
    activation: Activation


@dataclass(frozen=True)
class CrossAttention:
    """Every token sees all positions of what the encoder left, by keys and values that are made of its states once."""

    num_heads: int
    head_dim: int
    query: Linear
    keys_values: Linear
    out: Linear
    scale: float

    @property
    def kv(self) -> Fixed:
        return Fixed(self.num_heads, self.head_dim)


@dataclass(frozen=True)
class Twofold:
    """Attention among the decoder's `own` tokens, then across to the encoder's, with `norm` between: before the second half, or, of
    a block that is `summed`, of the sum behind the first."""

    own: Attention
    norm: Norm
    cross: CrossAttention
    summed: bool = False

    indivisible: ClassVar[bool] = True

    @property
    def kv(self) -> tuple[Heads | Whole, Fixed]:
        return self.own.kv, self.cross.kv


@dataclass(frozen=True)
class Reader(Encoder):
    """Blocks in which all positions of an input, `longest` at most, see each other.

    What goes in are tokens' vectors, by the decoder's embedding, or what the `stem` makes of a recording; `positions` are added,
    and the sums normed by `embed_norm`. `relative` is of all its blocks. Their tensors' names begin with `block_prefix`.
    """

    longest: int
    blocks: tuple[Block, ...]
    block_prefix: str
    norm: Norm | None
    stem: AudioStem | None = None
    positions: Positions | Sinusoids | None = None
    embed_norm: Norm | None = None
    relative: Relative | None = None

    before: ClassVar[tuple[str, ...]] = ("stem", "positions", "embed_norm", "relative")
    behind: ClassVar[tuple[str, ...]] = ("norm",)

    def places(self, path: str) -> Iterator[Place]:
        """Every leaf within; `path` is the encoder's own."""
        for name in self.before:
            yield from leaves(getattr(self, name), f"{path}.{name}", "")
        for index, block in enumerate(self.blocks):
            yield from leaves(block, f"{path}.blocks.{index}", self.block_prefix.format(index))
        for name in self.behind:
            yield from leaves(getattr(self, name), f"{path}.{name}", "")


@dataclass(frozen=True)
class TextReader(Reader):
    """Of the tokens of a text."""

    kinds: ClassVar[tuple[Kind, ...]] = ("tokens",)


@dataclass(frozen=True)
class AudioReader(Reader):
    """Of a recording's spectrum, `features` [bins, moments]."""

    kinds: ClassVar[tuple[Kind, ...]] = ("audio",)
