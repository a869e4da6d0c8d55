"""The parts that a model is declared with.

A model is blocks of a mixer and a feed-forward, which are made of leaves. Every leaf states its facts once: the tensors that
it is made of in a checkpoint, how they are fused, along which axis a rank cuts them and what it must not cut; every mixer
states what it keeps of a sequence. Sharding, loading, memory planning and KV groups are functions on the tree: they know
no part by name, so that a new one is a dataclass here and a module in `sapwood.nn`.

Names are relative: a leaf inside a block is found in the checkpoint under the decoder's `block_prefix`, so equal
blocks are equal values. `walk` gives the full names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from sapwood.arch.leaf import Axis as Axis
from sapwood.arch.leaf import Leaf as Leaf
from sapwood.arch.leaf import StoredTensor as StoredTensor
from sapwood.arch.share import WHOLE_MODEL, Share, Stage
from sapwood.arch.turns import STILL as STILL
from sapwood.arch.turns import Rope as Rope
from sapwood.base.kv import Heads, KVKind, Whole

if TYPE_CHECKING:
    from sapwood.arch.draft_head import DraftHead
    from sapwood.arch.encoder import Encoder
    from sapwood.arch.multiplied import Multiplied
    from sapwood.arch.network import Network
    from sapwood.arch.positions import Positions, Segments, Sinusoids
    from sapwood.arch.reader import Offsets, Relative
    from sapwood.arch.texts import Classifier

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2", "swiglu_clamped"]
"""`gelu` is exact, `gelu_tanh` its approximation, `relu2` the square of relu, `swiglu_clamped` of gates only (`Kernels.gated`)."""


@dataclass(frozen=True)
class Part:
    """`size` output rows of a Linear, from the checkpoint tensor `name`.weight (and `name`.bias).

    A cut along the output falls between `unit`s (a unit is a head's rows, say). Parts of one Linear that share a name
    are consecutive runs of rows of one tensor that the checkpoint holds fused already, in another order if each says `at` which row it
    begins; or they take turns there, `turn` rows of each.
    """

    name: str
    size: int
    unit: int = 1
    turn: int | None = None
    at: int | None = None


@dataclass(frozen=True)
class Linear(Leaf):
    """y = W x (+ b), W's rows being those of `parts` in order.

    `split` is the axis that ranks share: "out" cuts each part's rows, "in" the columns (in multiples of `unit`), None
    gives every rank the whole. A `transposed` one is stored with its inputs first; rows that have `unit_rows` are divided by
    their lengths when they are loaded.
    """

    inp: int
    parts: tuple[Part, ...]
    split: Literal["out", "in"] | None
    unit: int = 1
    bias: bool = False
    transposed: bool = False
    unit_rows: bool = False

    @property
    def out(self) -> int:
        return sum(part.size for part in self.parts)

    def rows(self, index: int) -> Axis:
        """The output rows of a part, as an axis of what the checkpoint holds."""
        part = self.parts[index]
        sizes = [other.size if other.name == part.name else 0 for other in self.parts]
        unit = part.unit if self.split == "out" else None
        if part.turn is None:
            first = sum(sizes[:index]) if part.at is None else part.at
            return Axis(part.size, unit, first=first, whole=sum(sizes), joined=True)
        turns = [other.turn or 0 if other.name == part.name else 0 for other in self.parts]
        first, every = sum(turns[:index]), sum(turns)
        return Axis(part.size, unit, first=first, whole=sum(sizes), joined=True, turn=part.turn, every=every)

    @property
    def columns(self) -> Axis:
        """The inputs, likewise."""
        return Axis(self.inp, self.unit if self.split == "in" else None, once=True)

    def tensors(self) -> tuple[StoredTensor, ...]:
        found = []
        for index, part in enumerate(self.parts):
            rows = self.rows(index)
            weight = StoredTensor("weight", f"{part.name}.weight", (rows, self.columns))
            found.append(replace(weight, transposed=self.transposed, unit_rows=self.unit_rows))
            if self.bias:
                found.append(StoredTensor("bias", f"{part.name}.bias", (rows,), alone=self.split == "in"))
        return tuple(found)

    def shared(self, share: Share) -> Self:
        inp = len(range(self.inp)[self.columns.of(share)])
        sizes = [len(range(part.size)[self.rows(index).of(share)]) for index, part in enumerate(self.parts)]
        parts = tuple(replace(part, size=size) for part, size in zip(self.parts, sizes, strict=True))
        return replace(self, inp=inp, parts=parts, bias=self.bias and (share.first or self.split != "in"))


@dataclass(frozen=True)
class Norm(Leaf):
    """RMS norm: x / sqrt(mean(x²) + eps) * (weight + offset); with `center` layer norm, of x less its mean, (+ bias).

    Without `name` it has no weights. Of a norm of heads, `rows` says that each of so many heads has weights of its own, in
    one tensor or, where the name has a {} for its number, in one each. Of a norm of all heads together each of `groups`
    is normed by itself, and ranks share these.
    """

    name: str
    size: int
    eps: float
    offset: float = 0.0
    center: bool = False
    bias: bool = False
    rows: int | None = None
    groups: int | None = None

    def tensors(self) -> tuple[StoredTensor, ...]:
        if not self.name:
            return ()
        if "{}" in self.name:
            names = [f"{self.name.format(row)}.weight" for row in range(self.rows or 0)]
            rows, own = Axis(len(names), 1), (Axis(self.size),)
            return tuple(StoredTensor("weight", name, own, entry=(i, rows)) for i, name in enumerate(names))
        axes = (self._columns,) if self.rows is None else (Axis(self.rows, 1), Axis(self.size))
        params = ("weight", "bias") if self.bias else ("weight",)
        return tuple(StoredTensor(param, f"{self.name}.{param}", axes) for param in params)

    @property
    def _columns(self) -> Axis:
        return Axis(self.size, None if self.groups is None else self.size // self.groups, once=True)

    def shared(self, share: Share) -> Self:
        rows, groups = (None if count is None else share.count(count) for count in (self.rows, self.groups))
        return replace(self, size=len(range(self.size)[self._columns.of(share)]), rows=rows, groups=groups)


class Mixer(Protocol):
    """What lets tokens see each other: a dataclass of parts. One whose fields count what ranks share, or have an entry for each,
    names them in `counted`; one that computes of all that ranks would share is `indivisible`, as feed-forwards may be. Adapters leave `fixed` ones."""

    @property
    def kv(self) -> KVKind | tuple[KVKind, ...] | None:
        """What it keeps of a sequence, one of a kind if it is several things; None if nothing."""
        ...


def kinds_of(mixer: Mixer) -> tuple[KVKind, ...]:
    """All that it keeps."""
    kept = mixer.kv
    if kept is None:
        return ()
    return kept if isinstance(kept, tuple) else (kept,)


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention, causal or among the tokens of a whole text. `qkv` yields query, key and value heads in this order.

    `window`, `chunked`, `cap`, `slopes`, `sinks`, `relative` and `ahead` are those of `Heads`, or of `Whole` if it is not `causal`. The norms act on each head, or, if
    they are as wide as all of them, on all together; before `rope`, or if `late` after it. `v_norm` is of each value head. Without values of its
    own, `qkv` yields queries and keys, which are the values too; without keys either, both are those of another layer (`Block.shares`). Of one that
    is `gated`, `qkv` yields a gate behind them, as wide as the queries, whose sigmoid multiplies what `out` is given.
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
    v_norm: Norm | None = None
    late: bool = False
    gated: bool = False
    cap: float | None = None
    slopes: tuple[float, ...] | None = None
    chunked: bool = False
    causal: bool = True
    sinks: Leaf | None = None
    relative: bool = False
    ahead: bool = False

    counted: ClassVar[tuple[str, ...]] = ("num_heads", "num_kv_heads", "slopes")

    @property
    def kv(self) -> Heads | Whole:
        sizes = self.num_heads, self.num_kv_heads, self.head_dim
        if not self.causal:
            return Whole(*sizes, self.window, self.relative)
        chunked = self.chunked and self.window is not None
        sinks = self.sinks is not None
        return Heads(*sizes, self.window, self.cap, self.slopes, chunked, sinks, self.relative, self.ahead)

    @property
    def norms_heads(self) -> bool:
        """Whether each head is normed by itself."""
        return self.q_norm is not None and self.q_norm.size == self.head_dim


@dataclass(frozen=True)
class Mlp:
    """down(activation(gate) * up)."""

    gate_up: Linear | Multiplied
    down: Linear
    activation: Activation


@dataclass(frozen=True)
class PlainMlp:
    """down(activation(up))."""

    up: Linear
    down: Linear
    activation: Activation


@dataclass(frozen=True)
class Block:
    """x += scale * after(mixer(norm(x))), then the same with `ffn`, which sees each token alone; every norm is optional.

    If `parallel`, both see the same x, and x += scale * (mixer(norm(x)) + ffn(norm(x))), without norms after; the ffn
    without a norm of its own shares the mixer's. Behind both comes what is `beside` them (`arch/beside.py`), then x is multiplied by
    `factor`. A mixer that `shares` what an earlier layer keeps leaves nothing of its own. In one that is `summed`, the norms after are of the
    sums: x = after(x + mixer(x)), then the same with `ffn`, without norms before, and nothing else. Of the halves that are `parted` each rank
    computes a summand.
    """

    mixer_norm: Norm | None
    mixer: Mixer
    ffn_norm: Norm | None
    ffn: object
    after_mixer: Norm | None = None
    after_ffn: Norm | None = None
    scale: float = 1.0
    parallel: bool = False
    beside: object | None = None
    factor: Leaf | None = None
    shares: int | None = None
    summed: bool = False
    parted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedding(Leaf):
    """Token embeddings from token `first` on, times `scale` rounded to the model's dtype. Ranks share the vocabulary."""

    name: str
    vocab_size: int
    hidden_size: int
    scale: float = 1.0
    first: int = 0

    def tensors(self) -> tuple[StoredTensor, ...]:
        rows = Axis(self.vocab_size, 1, once=True)
        return (StoredTensor("weight", f"{self.name}.weight", (rows, Axis(self.hidden_size))),)

    def shared(self, share: Share) -> Self:
        mine = share.run(self.vocab_size, 1)
        return replace(self, vocab_size=mine.stop - mine.start, first=mine.start)


@dataclass(frozen=True)
class Tied:
    """A head that uses the embedding's weights. A copy of them in the checkpoint under `name` is skipped."""

    name: str


@dataclass(frozen=True)
class Decoder:
    """A whole model. `dtype` is what the config says that the weights are stored in, if it does; `quantization` is the config's
    own section about them, which methods read. `root` begins all names in the checkpoint but the head's, and some leave it out; those that
    begin with one of `aside` are not of its own. `mtp` is the head of the checkpoint (`arch/draft_head.py`) that predicts
    more tokens than one. Tokens' vectors are normed by `embed_norm`. Logits are the head's products
    times `logit_scale`, then with a `logit_cap` cap * tanh(logit / cap). Without a `head` there are none, and texts are what it is for;
    some that have a `classifier` have scores. An `encoder` makes of media what blocks see besides tokens. `parted` are those of `embed`
    and `head` of which each rank has a part of the vocabulary. A rank's `portion` is the whole that it is of, and how each of its parts is shared;
    of a `stage` the blocks are a run of the whole's (`arch/stages.py`)."""

    architecture: str
    max_positions: int
    dtype: str | None
    embed: Embedding
    blocks: tuple[Block, ...]
    block_prefix: str
    norm: Norm | None
    head: Linear | Tied | None
    positions: Positions | Sinusoids | None = None
    segments: Segments | None = None
    embed_norm: Norm | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None
    logit_offsets: Offsets | None = None
    relative: Relative | None = None
    vectors: object | None = None
    streams: object | None = None
    classifier: Classifier | None = None
    encoder: Encoder | None = None
    root: str = ""
    aside: tuple[str, ...] = ()
    mtp: DraftHead | None = None
    quantization: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    parted: tuple[str, ...] = ()
    portion: tuple[Decoder, Mapping[str, Share]] | None = dataclasses.field(default=None, compare=False, repr=False)
    stage: Stage = WHOLE_MODEL

    before: ClassVar[tuple[str, ...]] = (
        "embed",
        "positions",
        "segments",
        "embed_norm",
        "relative",
        "vectors",
        "streams",
    )
    behind: ClassVar[tuple[str, ...]] = ("norm", "head", "classifier", "logit_offsets", "encoder")

    @property
    def vocab_size(self) -> int:
        return (self if self.portion is None else self.portion[0]).embed.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.embed.hidden_size

    @property
    def writes(self) -> bool:
        return self.head is not None

    def owns(self, tensor: str) -> bool:
        return not tensor.startswith(self.aside)


@dataclass(frozen=True)
class Place:
    """Where a leaf stands: `path` of field names in the tree, `prefix` of its names in the checkpoint."""

    path: str
    prefix: str
    leaf: Leaf


@runtime_checkable
class Nested(Protocol):
    """A part that has blocks of its own."""

    def places(self, path: str) -> Iterator[Place]: ...


def walk(decoder: Network) -> Iterator[Place]:
    """Every leaf, in the order of the tree."""
    stage = decoder.stage
    for name in decoder.before:
        if stage.begins or (name == "embed" and stage.tied):
            yield from leaves(getattr(decoder, name), name, "")
    for index, block in enumerate(decoder.blocks):
        yield from leaves(block, f"blocks.{index}", decoder.block_prefix.format(stage.first + index))
    for name in decoder.behind:
        if stage.ends:
            yield from leaves(getattr(decoder, name), name, "")


def ropes(decoder: Network) -> tuple[Rope, ...]:
    """Every rope that is somewhere in the blocks, once."""
    found = (part for block in dict.fromkeys(decoder.blocks) for _, part in inside(block, ""))
    return tuple(dict.fromkeys(part for part in found if isinstance(part, Rope)))


def leaves(part: object, path: str, prefix: str) -> Iterator[Place]:
    """Those in the part at `path`, whose names in the checkpoint begin with `prefix`; a network within says which are its own."""
    if isinstance(part, Nested):
        yield from part.places(path)
        return
    for place, found in inside(part, path):
        if isinstance(found, Leaf):
            yield Place(place, prefix, found)


def inside(part: object, path: str) -> Iterator[tuple[str, object]]:
    """The part and all parts within, down to the leaves, with their paths."""
    yield path, part
    if dataclasses.is_dataclass(part) and not isinstance(part, Leaf):
        for field in dataclasses.fields(part):
            yield from inside(getattr(part, field.name), f"{path}.{field.name}")
