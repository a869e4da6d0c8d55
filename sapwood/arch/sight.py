"""What models see with: towers that make vectors of images, as wide as a token's embedding.

A tower is one leaf: its weights are never quantised or cut, and every rank has all of them. It says which tensors of a checkpoint it is
made of, by the names that its module (`sapwood.nn.sight`) has for them. Images arrive as uint8 `pixels` [image, channel, row, column]
with the float32 `normal`, [factor, 3 means, 3 deviations]: a value is (pixel * factor - mean) / deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from sapwood.arch.encoder import Encoder
from sapwood.arch.parts import Attention, Axis, Block, Decoder, Leaf, StoredTensor
from sapwood.base.media import Kind, Media

SightActivation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Tower(Encoder, Leaf):
    """`out` is the size of a vector. Names of tensors begin as `roots` say, by the first word of those of the module; checkpoints may spell
    them as one of the `others` says."""

    out: int
    roots: tuple[tuple[str, str], ...]
    others: tuple[tuple[tuple[str, str], ...], ...] = ()

    kinds: ClassVar[tuple[Kind, ...]] = ("image",)

    def params(self) -> Iterator[tuple[str, Sizes]]:
        """Names and shapes of the module's weights."""
        raise NotImplementedError

    def largest(self, most: int) -> tuple[Sizes, int]:
        """The shape of the pixels of an image that costs most, of those with at most so many positions if there are some, and how many it
        has."""
        raise NotImplementedError

    def example(self, most: int) -> Media:
        """One of that shape, black."""
        shape, length = self.largest(most)
        return Media.of("image", {"pixels": np.zeros(shape, np.uint8), "normal": np.ones(7, np.float32)}, length)

    @property
    def turns(self) -> bool:
        """Whether its vectors have places of their own among rotary positions."""
        return False

    @property
    def ahead(self) -> bool:
        """Whether positions of one of its images see each other in the decoder, those behind too."""
        return False

    @property
    def scales(self) -> bool:
        """Whether images come nearly as large as they are, so that they may be scaled down."""
        return False

    @property
    def levels(self) -> int:
        """How many of the decoder's layers, from the first on, have a further vector of each position added behind them."""
        return 0

    @property
    def width(self) -> int:
        """Numbers of a position: its vector, and those of the levels behind it."""
        return self.out * (1 + self.levels)

    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(
            StoredTensor(name, self._spelt(name), tuple(Axis(size) for size in shape)) for name, shape in self.params()
        )

    def _spelt(self, name: str) -> str:
        first, _, rest = name.partition(".")
        return dict(self.roots)[first] + rest

    @property
    def spellings(self) -> tuple[Leaf, ...]:
        return (self, *(replace(self, roots=roots) for roots in self.others))


def affine(name: str, out: int, *inputs: int, bias: bool = True) -> Iterator[tuple[str, Sizes]]:
    """A weight [out, *inputs] and its bias."""
    yield f"{name}.weight", (out, *inputs)
    if bias:
        yield f"{name}.bias", (out,)


@dataclass(frozen=True)
class Vit:
    """A vision transformer over square images: CLIP's, with a vector of the whole image in front and a norm before its layers, or
    SigLIP's, whose patches have a bias and which has a norm behind its layers."""

    hidden: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int
    activation: SightActivation
    eps: float
    clip: bool

    @property
    def side(self) -> int:
        """Patches of a side."""
        return self.image // self.patch

    def params(self, name: str) -> Iterator[tuple[str, Sizes]]:
        hidden, within = self.hidden, f"{name}.embeddings"
        if self.clip:
            yield f"{within}.class_embedding", (hidden,)
        yield from affine(f"{within}.patch_embedding", hidden, 3, self.patch, self.patch, bias=not self.clip)
        yield f"{within}.position_embedding.weight", (self.side**2 + self.clip, hidden)
        if self.clip:
            yield from affine(f"{name}.pre_layrnorm", hidden)
        for index in range(self.layers):
            layer = f"{name}.encoder.layers.{index}"
            for norm in ("layer_norm1", "layer_norm2"):
                yield from affine(f"{layer}.{norm}", hidden)
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from affine(f"{layer}.self_attn.{part}", hidden, hidden)
            yield from affine(f"{layer}.mlp.fc1", self.inner, hidden)
            yield from affine(f"{layer}.mlp.fc2", hidden, self.inner)
        yield from affine(f"{name}.post_layernorm", hidden)


@dataclass(frozen=True)
class LlavaTower(Tower):
    """CLIP's or SigLIP's states before some of its layers side by side, without that of the whole image unless `full`, through two Linears.

    `features` are numbers of hidden states, 0 before the first layer.
    """

    vit: Vit = None  # type: ignore[assignment]
    features: tuple[int, ...] = ()
    full: bool = False
    activation: SightActivation = "gelu"
    bias: bool = True

    def params(self) -> Iterator[tuple[str, Sizes]]:
        yield from self.vit.params("tower")
        yield from affine("joiner.linear_1", self.out, self.vit.hidden * len(self.features), bias=self.bias)
        yield from affine("joiner.linear_2", self.out, self.out, bias=self.bias)

    @property
    def length(self) -> int:
        """Positions of an image."""
        return self.vit.side**2 + (self.full and self.vit.clip)

    def largest(self, most: int) -> tuple[Sizes, int]:
        return (1, 3, self.vit.image, self.vit.image), self.length


@dataclass(frozen=True)
class ShuffledTower(Tower):
    """SigLIP's states, of which each square of `factor` by `factor` becomes one vector (pixel shuffle), through a Linear."""

    vit: Vit = None  # type: ignore[assignment]
    factor: int = 1
    most_tiles: int = 1

    def params(self) -> Iterator[tuple[str, Sizes]]:
        yield from self.vit.params("tower")
        yield from affine("joiner.proj", self.out, self.vit.hidden * self.factor**2, bias=False)

    @property
    def length(self) -> int:
        """Positions of a tile."""
        return self.vit.side**2 // self.factor**2

    def largest(self, most: int) -> tuple[Sizes, int]:
        tiles = max(1, min(self.most_tiles, most // self.length))
        return (tiles, 3, self.vit.image, self.vit.image), tiles * self.length


@dataclass(frozen=True)
class InternTower(Tower):
    """InternViT's states, of which each square of `factor` by `factor` becomes one vector, through a norm and two Linears.

    Layers have norms before each half, layer norms or, if they are `squared`, RMS norms, and factors behind each; queries and keys may be
    `normed`, all heads together; `final` says that a norm is behind the layers.
    """

    hidden: int = 0
    inner: int = 0
    layers: int = 0
    heads: int = 0
    image: int = 448
    patch: int = 14
    factor: int = 2
    activation: SightActivation = "gelu"
    join: SightActivation = "gelu"
    eps: float = 1e-6
    squared: bool = False
    normed: bool = False
    bias: bool = False
    final: bool = False
    most_tiles: int = 13

    @property
    def side(self) -> int:
        """Patches of a side."""
        return self.image // self.patch

    @property
    def length(self) -> int:
        """Positions of a tile."""
        return self.side**2 // self.factor**2

    def largest(self, most: int) -> tuple[Sizes, int]:
        tiles = max(1, min(self.most_tiles, most // self.length))
        return (tiles, 3, self.image, self.image), tiles * self.length

    def params(self) -> Iterator[tuple[str, Sizes]]:
        hidden = self.hidden
        yield "tower.embeddings.cls_token", (1, 1, hidden)
        yield "tower.embeddings.position_embeddings", (1, self.side**2 + 1, hidden)
        yield from affine("tower.embeddings.patch_embeddings.projection", hidden, 3, self.patch, self.patch)
        for index in range(self.layers):
            layer = f"tower.encoder.layer.{index}"
            for part in ("q_proj", "k_proj", "v_proj"):
                yield from affine(f"{layer}.attention.{part}", hidden, hidden, bias=self.bias)
            yield from affine(f"{layer}.attention.projection_layer", hidden, hidden)
            for norm in ("q_norm", "k_norm") if self.normed else ():
                yield from affine(f"{layer}.attention.{norm}", hidden, bias=False)
            for norm in ("layernorm_before", "layernorm_after"):
                yield from affine(f"{layer}.{norm}", hidden, bias=not self.squared)
            for name in ("lambda_1", "lambda_2"):
                yield f"{layer}.{name}", (hidden,)
            yield from affine(f"{layer}.mlp.fc1", self.inner, hidden)
            yield from affine(f"{layer}.mlp.fc2", hidden, self.inner)
        if self.final:
            yield from affine("tower.layernorm", hidden)
        wide = hidden * self.factor**2
        yield from affine("joiner.layer_norm", wide)
        yield from affine("joiner.linear_1", self.out, wide)
        yield from affine("joiner.linear_2", self.out, self.out)


@dataclass(frozen=True)
class QwenTower(Tower):
    """Qwen2-VL's: patches of an image of any size, turned by row and column; those of a square of `merge` by `merge` become one vector.

    With a `window` (in pixels), as in Qwen2.5-VL, layers but those of `whole` attend within squares of it, norms are RMS norms and the MLP is
    gated.
    """

    hidden: int = 0
    inner: int = 0
    layers: int = 0
    heads: int = 0
    patch: int = 14
    merge: int = 2
    frames: int = 2
    activation: SightActivation = "quick_gelu"
    window: int | None = None
    whole: tuple[int, ...] = ()
    theta: float = 10000.0
    most_positions: int = 16384  # of the published processors' largest image

    @property
    def turns(self) -> bool:
        return True

    @property
    def scales(self) -> bool:
        return True

    def largest(self, most: int) -> tuple[Sizes, int]:
        side = max(1, math.isqrt(min(most, self.most_positions)))
        pixels = side * self.merge * self.patch
        return (1, 3, pixels, pixels), side**2

    def params(self) -> Iterator[tuple[str, Sizes]]:
        hidden, plain = self.hidden, self.window is None
        yield "tower.patch_embed.proj.weight", (hidden, 3, self.frames, self.patch, self.patch)
        for index in range(self.layers):
            layer = f"tower.blocks.{index}"
            for norm in ("norm1", "norm2"):
                yield from affine(f"{layer}.{norm}", hidden, bias=plain)
            yield from affine(f"{layer}.attn.qkv", 3 * hidden, hidden)
            yield from affine(f"{layer}.attn.proj", hidden, hidden)
            if plain:
                yield from affine(f"{layer}.mlp.fc1", self.inner, hidden)
                yield from affine(f"{layer}.mlp.fc2", hidden, self.inner)
            else:
                for part in ("gate_proj", "up_proj"):
                    yield from affine(f"{layer}.mlp.{part}", self.inner, hidden)
                yield from affine(f"{layer}.mlp.down_proj", hidden, self.inner)
        wide = hidden * self.merge**2
        yield from affine("tower.merger.ln_q", hidden, bias=plain)
        yield from affine("tower.merger.mlp.0", wide, wide)
        yield from affine("tower.merger.mlp.2", self.out, wide)


def unseeing(decoder: Decoder) -> Decoder:
    """A model without its tower, if it has one, whose tensors are not loaded."""
    if not isinstance(tower := decoder.encoder, Tower):
        return decoder
    names = [root for roots in (tower.roots, *tower.others) for _, root in roots]
    return replace(looking(decoder, ahead=False), encoder=None, aside=(*decoder.aside, *dict.fromkeys(names)))


def looking(decoder: Decoder, *, ahead: bool) -> Decoder:
    """Whose layers see ahead within images, or not."""

    def turned(block: Block) -> Block:
        mixer = block.mixer
        return replace(block, mixer=replace(mixer, ahead=ahead)) if isinstance(mixer, Attention) else block

    return replace(decoder, blocks=tuple(map(turned, decoder.blocks)))


def begun(*pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Roots from pairs of the module's word and what names begin with in its place."""
    return tuple((word, root) for word, root in pairs)
