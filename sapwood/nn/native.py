"""A whole decoder computed by the CPU's own kernels: one call from token ids to hidden states.

The same parts as `sapwood.nn.model`, which is its twin: float32 activations between products, weights in the precision
of the checkpoint. Between two products nothing is written that the next one does not read.

Suffix legend: T tokens, N rows that need logits, E hidden size, V vocabulary, P positions, F half of the rotated
dimensions, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from sapwood.arch import parts
from sapwood.arch.groups import kv_places
from sapwood.arch.parts import Decoder, Tied, ropes, walk
from sapwood.arch.shard import Piece
from sapwood.attention.base import Batch
from sapwood.attention.native import Native, step_of
from sapwood.kernels.cpu import library as cpu
from sapwood.kernels.cpu.library import Handle, Machine, address
from sapwood.nn.layers import Rotary
from sapwood.quant.packed import PackedWeights, Product, Rounded, Stored, packing, stored

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}


class NativeModel:
    """Keeps the interface of `sapwood.nn.model.Model`: `fill` or `randomize` once, then `forward` and `logits`."""

    def __init__(
        self,
        decoder: Decoder,
        backends: Sequence[Native],
        machine: Machine,
        *,
        max_positions: int | None = None,
        rounded: Rounded | None = None,
    ) -> None:
        self.decoder = decoder
        self._backends, self._machine, self._rounded = backends, machine, rounded
        num_positions = min(max_positions or decoder.max_positions, decoder.max_positions)
        self._rotaries = {rope: Rotary(rope, num_positions, torch.device("cpu")) for rope in ropes(decoder)}
        self._leaves: dict[str, _Leaf] = {place.path: _Leaf(place.leaf) for place in walk(decoder)}
        self._stack: Handle | None = None

    # ---- weights

    def fill(self, pieces: Sequence[Piece], source: Any) -> None:
        """Take every piece from a `sapwood.nn.load.Source`."""
        for piece in pieces:
            leaf = self._leaves[piece.path]
            if piece.param == "bias" or isinstance(leaf.part, parts.Norm):
                leaf.put_plain(piece.target[0], source.read(piece.name, piece.source))
            else:
                rows = source.stored(piece.name, piece.source[0])
                self._put(leaf, piece.target[0], rows or stored(source.read(piece.name, piece.source)), piece.shape[1])
            source.release(piece.name)  # or a file would be in memory twice when all of it has been read
        self._assemble()

    def randomize(self, seed: int) -> None:
        """Random weights: those of the twin for the same seed."""
        random = torch.Generator().manual_seed(seed)
        for leaf in self._leaves.values():
            match leaf.part:
                case parts.Norm():
                    leaf.vector = torch.ones(leaf.part.size)
                case parts.Embedding(vocab_size=rows, hidden_size=size):
                    values = torch.empty(rows, size).normal_(std=0.02, generator=random)
                    self._put(leaf, slice(0, rows), stored(values), size)
                case parts.Linear() as part:
                    values = torch.empty(part.out, part.inp).normal_(std=0.02, generator=random)
                    first = 0
                    for one in part.parts:
                        target = slice(first, first + one.size)
                        self._put(leaf, target, stored(values[target]), part.inp)
                        first = target.stop
                    if part.bias:
                        leaf.vector = torch.empty(part.out).normal_(std=0.02, generator=random)
        self._assemble()

    def _put(self, leaf: _Leaf, target: slice, rows: Stored, num_inputs: int) -> None:
        """Pack the rows that are the leaf's outputs `target`."""
        number = target.stop - target.start
        made = PackedWeights(self._machine, packing(rows.form, num_inputs, self._rounded), number, num_inputs)
        made.put(rows, 0, number)
        leaf.weights[target.start] = made

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices."""
        return sum(weights.nbytes for leaf in self._leaves.values() for weights in leaf.weights.values())

    # ---- steps

    def __call__(self, batch: Batch) -> Tensor:
        return self.forward(batch)

    def forward(self, batch: Batch) -> Tensor:
        """The hidden states of every token after the last norm, float32 hidden_TE."""
        assert self._stack is not None, "the weights are not there yet"
        hidden_TE = torch.empty(len(batch.ids_T), self.decoder.hidden_size)
        step, _held = step_of(batch, range(len(self._backends)))
        self._machine.library.stack_forward(self._stack.pointer, byref(step), address(hidden_TE))
        return hidden_TE

    def logits(self, hidden_NE: Tensor, *, raw: bool = False) -> Tensor:
        """float32 logits_NV of some of the hidden states."""
        return self._head(hidden_NE)

    # ---- the kernels' view of it

    def _assemble(self) -> None:
        decoder, leaves = self.decoder, self._leaves
        self._products: dict[str, Product] = {
            path: leaf.product() for path, leaf in leaves.items() if not isinstance(leaf.part, parts.Norm)
        }
        self._head = self._products["embed" if isinstance(decoder.head, Tied) else "head"]
        embedding = next(iter(leaves["embed"].weights.values()))
        self._norms: list[Tensor] = []  # what the library has pointers to
        norm = self._norm("norm", decoder.norm)
        self._stack = stack = Handle(
            self._machine.library,
            "stack",
            self._machine.pointer,
            embedding.pointer,
            decoder.embed.scale,
            norm.weight,
            norm.eps,
            decoder.hidden_size,
        )
        library = self._machine.library
        for backend in self._backends:
            library.stack_add_group(stack.pointer, backend.cells.pointer)
        for index, (block, place) in enumerate(zip(decoder.blocks, kv_places(decoder), strict=True)):
            assert place is not None
            library.stack_add_layer(stack.pointer, byref(self._layer(f"blocks.{index}", block, *place)))

    def _layer(self, path: str, block: parts.Block, group: int, number: int) -> cpu.Layer:
        attention, mlp = block.mixer, block.ffn
        assert isinstance(attention, parts.Attention) and isinstance(mlp, parts.Mlp)
        both_2PF = self._rotaries[attention.rope].both_2PF
        heads = cpu.Heads(
            self._head_norm(f"{path}.mixer", attention),
            address(both_2PF[0]),
            address(both_2PF[1]),
            both_2PF.shape[2],
            0,
            group,
            number,
            attention.scale,
        )
        return cpu.Layer(
            self._norm(f"{path}.mixer_norm", block.mixer_norm),
            self._norm(f"{path}.after_mixer", block.after_mixer),
            self._norm(f"{path}.ffn_norm", block.ffn_norm),
            self._norm(f"{path}.after_ffn", block.after_ffn),
            self._products[f"{path}.mixer.qkv"].pointer,
            self._products[f"{path}.mixer.out"].pointer,
            self._products[f"{path}.ffn.gate_up"].pointer,
            self._products[f"{path}.ffn.down"].pointer,
            heads,
            _ACTIVATIONS[mlp.activation],
        )

    def _norm(self, path: str, part: parts.Norm | None) -> cpu.Norm:
        if part is None:
            return cpu.Norm()
        return self._held(self._leaves[path].plain(), part.eps)

    def _head_norm(self, path: str, attention: parts.Attention) -> cpu.Norm:
        if attention.q_norm is None or attention.k_norm is None:
            return cpu.Norm()
        q_D, k_D = (self._leaves[f"{path}.{name}"].plain() for name in ("q_norm", "k_norm"))
        both_ND = torch.cat([q_D.expand(attention.num_heads, -1), k_D.expand(attention.num_kv_heads, -1)])
        return self._held(both_ND, attention.q_norm.eps)

    def _held(self, weight: Tensor, eps: float) -> cpu.Norm:
        self._norms.append(weight)
        return cpu.Norm(address(weight), eps)


class _Leaf:
    """The weights of a part: matrices by their first output, one for each of the part's; a norm's or a bias's vector."""

    def __init__(self, part: parts.Leaf) -> None:
        self.part = part
        self.weights: dict[int, PackedWeights] = {}
        self.vector: Tensor | None = None

    def put_plain(self, target: slice, data: Tensor) -> None:
        """A run of the vector; of a norm, to which its offset is added, it is the whole."""
        if isinstance(self.part, parts.Norm):
            self.vector = data.float() + self.part.offset
        elif isinstance(self.part, parts.Linear):
            self.vector = torch.zeros(self.part.out) if self.vector is None else self.vector
            self.vector[target] = data.float()

    def plain(self) -> Tensor:
        assert self.vector is not None
        return self.vector

    def product(self) -> Product:
        ordered = [self.weights[first] for first in sorted(self.weights)]
        if self.vector is None:
            return Product(*ordered)
        biases: Mapping[int, Tensor] = {
            index: self.vector[first : first + self.weights[first].num_outputs]
            for index, first in enumerate(sorted(self.weights))
        }
        return Product(*ordered, biases=biases)
