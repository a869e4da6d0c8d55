"""A decoder as the list of operations that the CPU's library runs (`kernels/cpu/stack.h`), made from its parts.

Each part of a block that the library has operations for says here which they are; a new one is a new list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sapwood.arch import experts, multiplied, parts
from sapwood.arch.groups import KVPlace, kv_places
from sapwood.arch.parts import Decoder, ropes
from sapwood.arch.recurrent import Skip
from sapwood.kernels.cpu import library as cpu
from sapwood.kernels.cpu.library import Handle, Machine, address
from sapwood.nn.layers import Norm
from sapwood.nn.recurrent import Conv
from sapwood.quant.packed import PackedLeaf, PackedWeights, Product

STREAM, FRESH, HEADS, SHARED, SHARED_GATE, ROOM = range(6)
"""Buffers of the library: the residual stream, what a norm is to follow before it joins the stream, what a mixer's first product
yields, what a shared expert yields before it is weighed, its gate, and from there on whatever a mixer or a feed-forward has
room for."""

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu": 3, "relu2": 4, "swiglu_clamped": 5}
_SCORES = {"softmax": 0, "sigmoid": 1, "sparsemix": 2}


class Operation(NamedTuple):
    """What the library's function `stack_` + `name` adds."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Weights:
    """Of all leaves, by path; norms with their offset, float32. `angles` are cos and sin of each rope, [2, positions, half].
    `tables` are those that are read by rows.

    `inputs` is the library's group of what an encoder leaves, if there is one. `held` is what lists have pointers to besides.
    """

    tables: Mapping[str, PackedWeights]
    packed: Mapping[str, PackedLeaf]
    stacks: Mapping[str, Sequence[Product]]
    norms: Mapping[str, Norm]
    vectors: Mapping[str, Tensor]
    convs: Mapping[str, Conv]
    angles: Mapping[parts.Rope, Tensor]
    inputs: int | None = None
    held: list[object] = field(default_factory=list)

    def norm(self, path: str, part: parts.Norm | None) -> cpu.Norm:
        if part is None:
            return cpu.Norm()
        leaf = self.norms[path]
        bias = None if leaf.bias is None else address(leaf.bias)
        return cpu.Norm(address(leaf.weight), bias, part.eps, part.center)


@dataclass(frozen=True, eq=False)
class Spot:
    """Where in the tree a part stands, in which block, where it keeps its KV, and in which buffer what it yields is wanted: added to
    what is there, or anew."""

    weights: Weights
    path: str
    block: int
    place: KVPlace | None
    to: int
    add: bool

    def product(self, name: str) -> int | None:
        return self.weights.packed[f"{self.path}.{name}"].product.pointer

    def hold(self, tensor: Tensor) -> int:
        """Where the numbers of a tensor lie that nobody else keeps: float32."""
        tensor = tensor.float().contiguous()
        self.weights.held.append(tensor)
        return address(tensor)

    def stack(self, name: str) -> Any:
        """Of the experts, in an array."""
        return cpu.pointers([product.pointer or 0 for product in self.weights.stacks[f"{self.path}.{name}"]])

    def yields(self, name: str) -> Operation:
        """The last product."""
        return Operation("project", (self.product(name), self.to, self.add))


@singledispatch
def operations(part: object, spot: Spot) -> Iterator[Operation]:
    """What a mixer or a feed-forward does with the rows of its norm."""
    raise AssertionError(f"the library has no operations for {type(part).__name__}")


def unlisted(decoder: Decoder) -> str | None:
    """The name of a part that the library has no operations for."""
    if any(rope.sharpening is not None for rope in ropes(decoder)):
        return "Sharpening"
    unknown = operations.dispatch(object)
    for block in dict.fromkeys(decoder.blocks):
        for part in (block.mixer, block.ffn, block.beside, block.factor):
            if part is not None and operations.dispatch(type(part)) is unknown:
                return type(part).__name__
            if found := missing(part):
                return found
        if block.shares is not None:
            return "keys and values of another layer"
    return None


@singledispatch
def missing(part: object) -> str | None:
    """What of a part the library has no operations for, though it has some for its kind."""
    return None


@missing.register
def _(part: parts.Mlp) -> str | None:
    return "Multiplied" if isinstance(part.gate_up, multiplied.Multiplied) else None


@missing.register
def _(part: parts.Attention) -> str | None:
    return "values that are normed, or that are the keys" if part.v_norm or len(part.qkv.parts) < 3 else None


class _Left(NamedTuple):
    """What lies beside the stream, to be joined to it: its norm, times a scale; 0 is nothing."""

    norm: cpu.Norm
    scale: float


def listing(decoder: Decoder, weights: Weights) -> Iterator[Operation]:
    """All operations from token ids to hidden states."""
    size, nothing = decoder.hidden_size, _Left(cpu.Norm(), 0.0)
    yield Operation("embed", (weights.tables["embed"].pointer, decoder.embed.scale))
    if decoder.positions is not None:
        yield Operation("positions", (weights.tables["positions"].pointer,))
    if decoder.segments is not None:
        yield Operation("segments", (weights.tables["segments"].pointer,))
    if decoder.embed_norm is not None:
        norm = weights.norm("embed_norm", decoder.embed_norm)
        yield Operation("norm_columns", (norm, STREAM, size, 0, size))
    left = nothing
    for index, (block, kept) in enumerate(zip(decoder.blocks, kv_places(decoder), strict=True)):
        path, place = f"blocks.{index}", next(iter(kept.values()), None)
        if block.summed:
            if not index or not decoder.blocks[index - 1].summed:
                yield Operation("norm", (cpu.Norm(), *left, FRESH, size))
            yield from _summed(block, Spot(weights, path, index, place, STREAM, True), size)
            left = nothing
            continue
        if not isinstance(block.mixer, Skip):
            yield Operation("norm", (weights.norm(f"{path}.mixer_norm", block.mixer_norm), *left, FRESH, size))
            behind = weights.norm(f"{path}.after_mixer", block.after_mixer)
            left = nothing if _straight(block, block.after_mixer) else _Left(behind, block.scale)
            to = STREAM if left is nothing else FRESH
            yield from operations(block.mixer, Spot(weights, f"{path}.mixer", index, place, to, to == STREAM))
        if not isinstance(block.ffn, Skip):
            name = "mixer_norm" if block.parallel and block.ffn_norm is None else "ffn_norm"
            before, joined = weights.norm(f"{path}.{name}", getattr(block, name)), nothing if block.parallel else left
            yield Operation("norm", (before, *joined, FRESH, size))
            behind = weights.norm(f"{path}.after_ffn", block.after_ffn)
            left = nothing if _straight(block, block.after_ffn) else _Left(behind, block.scale)
            to = STREAM if left is nothing else FRESH
            spot = Spot(weights, f"{path}.ffn", index, place, to, to == STREAM or block.parallel)
            yield from operations(block.ffn, spot)
    yield Operation("finish", (weights.norm("norm", decoder.norm), *left, FRESH, size))


def _summed(block: parts.Block, spot: Spot, size: int) -> Iterator[Operation]:
    """Of a block whose norms are of sums: the stream is such a norm, and each half takes it as the one before has left it."""
    weights, path = spot.weights, spot.path
    yield from operations(block.mixer, replace(spot, path=f"{path}.mixer"))
    yield Operation("settle", (weights.norm(f"{path}.after_mixer", block.after_mixer), size))
    yield from operations(block.ffn, replace(spot, path=f"{path}.ffn"))
    yield Operation("settle", (weights.norm(f"{path}.after_ffn", block.after_ffn), size))


def _straight(block: parts.Block, after: parts.Norm | None) -> bool:
    """Whether what a mixer or a feed-forward yields is added to the stream as it is, at once."""
    return after is None and block.scale == 1.0 and not block.parallel


@operations.register
def _attention(part: parts.Attention, spot: Spot) -> Iterator[Operation]:
    assert spot.place is not None
    angles_2PF = spot.weights.angles[part.rope]
    heads = cpu.Heads(
        norm=_head_norm(part, spot),
        cos=address(angles_2PF[0]),
        sin=address(angles_2PF[1]),
        half=angles_2PF.shape[2],
        by_token=0,
        interleaved=part.rope.interleaved,
        late=part.late,
        group=spot.place.group,
        layer=spot.place.layer if part.causal else 0,  # texts that are read whole leave nothing for later steps
        sinks=None if part.sinks is None else address(spot.weights.vectors[f"{spot.path}.sinks"]),
        scale=part.scale,
    )
    gate = -1
    if part.gated:
        gate, qkv = ROOM, spot.weights.packed[f"{spot.path}.qkv"].product
        for product, to in zip(qkv.cut(3), (HEADS, gate), strict=True):
            spot.weights.held.append(product)
            yield Operation("project", (product.pointer, to, False))
    else:
        yield Operation("project", (spot.product("qkv"), HEADS, False))
    if part.q_norm is not None and part.k_norm is not None and not part.norms_heads:
        q_size, k_size = part.q_norm.size, part.k_norm.size
        for name, norm, first in (("q_norm", part.q_norm, 0), ("k_norm", part.k_norm, q_size)):
            how = spot.weights.norm(f"{spot.path}.{name}", norm)
            yield Operation("norm_columns", (how, HEADS, q_size + 2 * k_size, first, norm.size))
    yield Operation("attend", (heads, HEADS, gate))
    yield spot.yields("out")


def _head_norm(part: parts.Attention, spot: Spot) -> cpu.Norm:
    """A row for each query and key head."""
    if part.q_norm is None or part.k_norm is None or not part.norms_heads:
        return cpu.Norm()
    q_D, k_D = (spot.weights.norms[f"{spot.path}.{name}"].weight for name in ("q_norm", "k_norm"))
    both_ND = torch.cat([q_D.expand(part.num_heads, -1), k_D.expand(part.num_kv_heads, -1)])
    return cpu.Norm(spot.hold(both_ND), None, part.q_norm.eps, part.q_norm.center)


@operations.register
def _skip(part: Skip, spot: Spot) -> Iterator[Operation]:
    return iter(())


@operations.register
def _mlp(part: parts.Mlp, spot: Spot) -> Iterator[Operation]:
    yield Operation("gate", (spot.product("gate_up"), _ACTIVATIONS[part.activation]))
    yield spot.yields("down")


@operations.register
def _plain_mlp(part: parts.PlainMlp, spot: Spot) -> Iterator[Operation]:
    yield Operation("gate", (spot.product("up"), _ACTIVATIONS[part.activation]))
    yield spot.yields("down")


@operations.register
def _experts(part: experts.Experts, spot: Spot) -> Iterator[Operation]:
    """Experts leave the rows that they take to what all tokens see."""
    by, weights = part.selection, spot.weights
    how = cpu.Selection(
        offsets=None if part.offsets is None else address(weights.vectors[f"{spot.path}.offsets"]),
        top=by.top,
        score=_SCORES[by.score],
        renormalised=by.renormalised,
        groups=by.groups,
        top_groups=by.top_groups,
        group_best=by.group_best,
        scale=by.scale,
        slack=by.slack,
    )
    yield Operation("project", (spot.product("router"), ROOM, False))
    gate_ups, downs = (spot.stack(name) for name in ("gate_up", "down"))
    kind = _ACTIVATIONS[part.activation]
    places = (ROOM, spot.to, spot.add)
    yield Operation("experts", (how, gate_ups, downs, part.count, kind, part.weighs_input, *places))
    if part.shared is None:
        return
    within = replace(spot, path=f"{spot.path}.shared", add=True)
    if part.shared_gate is None:
        yield from operations(part.shared, within)
        return
    yield Operation("project", (spot.product("shared_gate"), SHARED_GATE, False))
    yield from operations(part.shared, replace(within, to=SHARED, add=False))
    yield Operation("add_gated", (SHARED, SHARED_GATE, spot.to, part.shared.down.out))


class Stack(Handle):
    """A list as the library runs it, on the cells of all KV groups and on `weights`."""

    def __init__(
        self, machine: Machine, groups: Sequence[Handle], operations: Sequence[Operation], weights: Weights
    ) -> None:
        super().__init__(machine.library, "stack", machine.pointer)
        self._held = (machine, groups, operations, weights)
        for cells in groups:
            self.library.stack_add_group(self.pointer, cells.pointer)
        for name, arguments in operations:
            getattr(self.library, f"stack_{name}")(self.pointer, *arguments)
