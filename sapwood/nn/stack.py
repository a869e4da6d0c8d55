"""A decoder as the list of operations that the CPU's library runs (`kernels/cpu/stack.h`), made from its parts.

Each part of a block that the library has operations for says here which they are; a new one is a new list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sapwood.arch import parts
from sapwood.arch.groups import KVPlace, kv_places
from sapwood.arch.parts import Decoder
from sapwood.kernels.cpu import library as cpu
from sapwood.kernels.cpu.library import Handle, Machine, address
from sapwood.quant.packed import PackedWeights, Product

_STREAM, _FRESH, _HEADS = range(3)
"""Buffers of the library: the residual stream, what a norm is to follow before it joins the stream, an attention's heads."""

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}


class Operation(NamedTuple):
    """What the library's function `stack_` + `name` adds."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Weights:
    """Of all leaves, by path; norms with their offset, float32. `angles` are cos and sin of each rope, [2, positions, half].

    `held` is what lists have pointers to besides.
    """

    embedding: PackedWeights
    products: Mapping[str, Product]
    norms: Mapping[str, Tensor]
    angles: Mapping[parts.Rope, Tensor]
    held: list[Tensor] = field(default_factory=list)

    def norm(self, path: str, part: parts.Norm | None) -> cpu.Norm:
        return cpu.Norm() if part is None else cpu.Norm(address(self.norms[path]), part.eps)


@dataclass(frozen=True, eq=False)
class Spot:
    """Where in the tree a part stands, where it keeps its KV, and in which buffer what it yields is wanted."""

    weights: Weights
    path: str
    place: KVPlace | None
    to: int

    def product(self, name: str) -> int | None:
        return self.weights.products[f"{self.path}.{name}"].pointer

    def yields(self, name: str) -> Operation:
        """The last product: the stream is added to, another buffer is written anew."""
        return Operation("project", (self.product(name), self.to, self.to == _STREAM))


@singledispatch
def operations(part: object, spot: Spot) -> Iterator[Operation]:
    """What a mixer or a feed-forward does with the rows of its norm."""
    raise AssertionError(f"the library has no operations for {type(part).__name__}")


def unlisted(decoder: Decoder) -> str | None:
    """The name of a part that the library has no operations for."""
    inner = [part for block in decoder.blocks for part in (block.mixer, block.ffn)]
    unknown = operations.dispatch(object)
    return next((type(part).__name__ for part in inner if operations.dispatch(type(part)) is unknown), None)


def listing(decoder: Decoder, weights: Weights) -> Iterator[Operation]:
    """All operations from token ids to hidden states."""
    yield Operation("embed", (weights.embedding.pointer, decoder.embed.scale))
    after = cpu.Norm()
    for index, (block, place) in enumerate(zip(decoder.blocks, kv_places(decoder), strict=True)):
        halves = (
            ("mixer", block.mixer_norm, block.mixer, block.after_mixer),
            ("ffn", block.ffn_norm, block.ffn, block.after_ffn),
        )
        for name, before, part, behind in halves:
            path = f"blocks.{index}"
            norm = weights.norm(f"{path}.{name}_norm", before)
            yield Operation("norm", (norm, after, _FRESH, decoder.hidden_size))
            to = _STREAM if behind is None else _FRESH
            yield from operations(part, Spot(weights, f"{path}.{name}", place, to))
            after = weights.norm(f"{path}.after_{name}", behind)
    yield Operation("finish", (weights.norm("norm", decoder.norm), after, _FRESH, decoder.hidden_size))


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
        group=spot.place.group,
        layer=spot.place.layer,
        scale=part.scale,
    )
    yield Operation("project", (spot.product("qkv"), _HEADS, False))
    yield Operation("attend", (heads, _HEADS))
    yield spot.yields("out")


def _head_norm(part: parts.Attention, spot: Spot) -> cpu.Norm:
    """A row for each query and key head."""
    if part.q_norm is None or part.k_norm is None:
        return cpu.Norm()
    q_D, k_D = (spot.weights.norms[f"{spot.path}.{name}"] for name in ("q_norm", "k_norm"))
    both_ND = torch.cat([q_D.expand(part.num_heads, -1), k_D.expand(part.num_kv_heads, -1)])
    spot.weights.held.append(both_ND)
    return cpu.Norm(address(both_ND), part.q_norm.eps)


@operations.register
def _mlp(part: parts.Mlp, spot: Spot) -> Iterator[Operation]:
    yield Operation("gate", (spot.product("gate_up"), _ACTIVATIONS[part.activation]))
    yield spot.yields("down")


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
