"""The parts that a model is declared with.

Every leaf states its facts once: the names of its tensors in a checkpoint, how they are fused, along which axis a rank
cuts them and what it must not cut. Sharding, loading and memory planning are functions on the tree.

Names are relative: a leaf inside a block is found in the checkpoint under the decoder's `block_prefix`, so equal
blocks are equal values. `walk` gives the full names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Part:
    """`size` output rows of a Linear, from the checkpoint tensor `name`.weight (and `name`.bias).

    A cut along the output falls between `unit`s (a unit is a head's rows, say). Parts of one Linear that share a name
    are consecutive runs of rows of one tensor that the checkpoint holds fused already.
    """

    name: str
    size: int
    unit: int = 1


@dataclass(frozen=True)
class Linear:
    """y = W x (+ b), W's rows being those of `parts` in order.

    `split` is the axis that ranks share: "out" cuts each part's rows, "in" the columns (in multiples of `unit`), None
    gives every rank the whole.
    """

    inp: int
    parts: tuple[Part, ...]
    split: Literal["out", "in"] | None
    unit: int = 1
    bias: bool = False

    @property
    def out(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Norm:
    """RMS norm: x / sqrt(mean(x²) + eps) * (weight + offset)."""

    name: str
    size: int
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al., 2023); `attention_factor` multiplies cos and sin."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_positions: int
    attention_factor: float
    truncate: bool


@dataclass(frozen=True)
class Rope:
    """Rotary positions on the first `dim` dimensions of each head, dimension i paired with i + dim / 2."""

    dim: int
    theta: float
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention. `qkv` yields query, key and value heads in this order.

    `window` is None, or how many positions a query sees, itself included. The norms act on each head, before `rope`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv: Linear
    out: Linear
    rope: Rope
    scale: float
    window: int | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class Mlp:
    """down(activation(gate) * up)."""

    gate_up: Linear
    down: Linear
    activation: Activation


@dataclass(frozen=True)
class Block:
    """x += after(attention(norm(x))), then the same with the MLP; the norms after are optional."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    after_attention: Norm | None = None
    after_mlp: Norm | None = None


@dataclass(frozen=True)
class Embedding:
    """Token embeddings, ranks sharing the vocabulary, times `scale` rounded to the model's dtype."""

    name: str
    vocab_size: int
    hidden_size: int
    scale: float = 1.0


@dataclass(frozen=True)
class Tied:
    """A head that uses the embedding's weights. A copy of them in the checkpoint under `name` is skipped."""

    name: str


@dataclass(frozen=True)
class Decoder:
    """A whole model. `dtype` is what the config says that the weights are stored in, if it does."""

    architecture: str
    max_positions: int
    dtype: str | None
    embed: Embedding
    blocks: tuple[Block, ...]
    block_prefix: str
    norm: Norm
    head: Linear | Tied

    @property
    def vocab_size(self) -> int:
        return self.embed.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.embed.hidden_size


Leaf = Linear | Norm | Embedding


@dataclass(frozen=True)
class Place:
    """Where a leaf stands: `path` of field names in the tree, `prefix` of its names in the checkpoint."""

    path: str
    prefix: str
    leaf: Leaf


def walk(decoder: Decoder) -> Iterator[Place]:
    """Every leaf with weights, in the order of the tree."""
    yield from _walk(decoder.embed, "embed", "")
    for index, block in enumerate(decoder.blocks):
        yield from _walk(block, f"blocks.{index}", decoder.block_prefix.format(index))
    yield from _walk(decoder.norm, "norm", "")
    yield from _walk(decoder.head, "head", "")


def _walk(part: object, path: str, prefix: str) -> Iterator[Place]:
    if isinstance(part, Linear | Norm | Embedding):
        yield Place(path, prefix, part)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from _walk(getattr(part, field.name), f"{path}.{field.name}", prefix)
