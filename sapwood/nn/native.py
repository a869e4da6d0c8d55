"""A whole decoder computed by the CPU's own kernels: one call from token ids to hidden states.

The same parts as `sapwood.nn.model`, which is its twin: float32 activations between products, weights in the precision
of the checkpoint. Between two products nothing is written that the next one does not read.

Suffix legend: T tokens, N rows that need logits, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import replace

import torch
from torch import Tensor

from sapwood.arch import experts, parts, recurrent, sinks
from sapwood.arch.parts import Decoder, Place, Tied, ropes, walk
from sapwood.attention.base import Batch
from sapwood.attention.native import InLibrary, step_of
from sapwood.kernels.adapters import Matrices
from sapwood.kernels.cpu.library import Change, Machine, address
from sapwood.nn import stack_latent, stack_states  # noqa: F401 (they bring operations)
from sapwood.nn.adapted import AdaptedWeights, Bank
from sapwood.nn.experts import Offsets
from sapwood.nn.layers import Norm, Rotary, Sinks
from sapwood.nn.make import Build, Site, make
from sapwood.nn.model import finished
from sapwood.nn.recurrent import Conv, PerHead
from sapwood.nn.stack import Stack, Weights, listing
from sapwood.quant.base import Choice, Leaf
from sapwood.quant.packed import PackedLeaf
from sapwood.quant.packed_stack import PackedStack

_CPU = torch.device("cpu")


class NativeModel:
    """Keeps the interface of `sapwood.nn.model.Model`. Its `method` must make weights for the CPU's kernels everywhere."""

    def __init__(
        self,
        decoder: Decoder,
        backends: Sequence[InLibrary],
        machine: Machine,
        method: Choice,
        *,
        max_positions: int | None = None,
        bank: Bank | None = None,
    ) -> None:
        self.decoder, self.method, self.device = decoder, method, _CPU
        self._backends, self._machine, self._bank = backends, machine, bank
        self.encoder = None
        num_positions = min(max_positions or decoder.max_positions, decoder.max_positions)
        self._rotaries = {rope: Rotary(rope, num_positions, _CPU) for rope in ropes(decoder)}
        how = Build(device=_CPU, dtype=torch.float32, backends=(), method=method)
        self.classifier = None if decoder.classifier is None else make(decoder.classifier, Site(how, "classifier"))
        within = {} if self.classifier is None else dict(self.classifier.named_modules(prefix="classifier"))
        leaves = {place.path: within.get(place.path) or _leaf(place, how) for place in walk(decoder)}
        self._norms = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Norm)}
        self._adapted = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, AdaptedWeights)}
        plain = {**leaves, **{path: leaf.base for path, leaf in self._adapted.items()}}
        self._packed = {path: leaf for path, leaf in plain.items() if isinstance(leaf, PackedLeaf)}
        self._stacks = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, PackedStack)}
        self._vectors = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Offsets | PerHead | Sinks)}
        self._convs = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Conv)}
        kinds = (self._norms, self._packed, self._stacks, self._vectors, self._convs)
        assert {path for kind in kinds for path in kind} == leaves.keys(), "weights that the kernels cannot read"
        self._leaves = leaves
        self._stack: Stack | None = None

    # ---- weights

    def leaf(self, path: str) -> Leaf:
        return self._leaves[path]

    def finish(self) -> None:
        """All leaves have their weights."""
        for path, leaf in self._adapted.items():
            self._packed[path].product.adapt(changes_of(leaf.matrices))
        self.weights = weights = Weights(
            tables={
                path: self._packed[path].first for path in ("embed", "positions", "segments") if path in self._packed
            },
            packed=self._packed,
            stacks={path: leaf.products for path, leaf in self._stacks.items()},
            norms=self._norms,
            vectors={path: leaf.weight for path, leaf in self._vectors.items()},
            convs=self._convs,
            angles={rope: rotary.both_2PF for rope, rotary in self._rotaries.items()},
        )
        head = "embed" if isinstance(self.decoder.head, Tied) else "head"
        self._head = None if self.decoder.head is None else self._packed[head].product
        cells = [backend.cells for backend in self._backends]
        self._stack = Stack(self._machine, cells, list(listing(self.decoder, weights)), weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices."""
        return sum(one.nbytes for some in (self._packed, self._stacks) for one in some.values())

    # ---- steps

    def __call__(self, batch: Batch) -> Tensor:
        return self.forward(batch)

    def forward(self, batch: Batch) -> Tensor:
        """The hidden states of every token after the last norm, float32 hidden_TE."""
        assert self._stack is not None, "the weights are not there yet"
        hidden_TE = torch.empty(len(batch.ids_T), self.decoder.hidden_size)
        step, _held = step_of(batch, [backend.index for backend in self._backends])
        if self._bank is not None and (of_tokens := self._bank.of_tokens) is not None:
            step.adapters = address(of_tokens)
        self._machine.library.stack_forward(self._stack.pointer, byref(step), address(hidden_TE))
        return hidden_TE

    def states(self, batch: Batch, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        assert not taps, "hidden states between its layers are nowhere to be seen"
        return self.forward(batch), []

    def embed(self, ids_T: Tensor) -> Tensor:
        """float32 embeddings [T, E] of some tokens."""
        return self.weights.tables["embed"].rows(ids_T.long(), self.decoder.embed.scale)

    def logits(self, hidden_NE: Tensor, *, raw: bool = False) -> Tensor:
        """float32 logits_NV of some of the hidden states."""
        assert self._head is not None, "asked only of those that have one"
        return finished(self.decoder, self._head(hidden_NE))

    def classify(self, vectors_NE: Tensor) -> Tensor:
        """float32 scores of the labels."""
        assert self.classifier is not None, "asked only of those that have one"
        scores_NL: Tensor = self.classifier(vectors_NE)
        return scores_NL


def changes_of(matrices: Matrices) -> Change:
    """What adapters may change in a Linear, as products read it: where its tensors lie, float32."""
    _, groups, rank, ins = matrices.a_SGRI.shape
    outputs_last_SRO = matrices.b_SOR.transpose(1, 2)
    assert outputs_last_SRO.is_contiguous() and matrices.a_SGRI.dtype == torch.float32, "made for a CPU"
    return Change(
        groups=groups,
        rank=rank,
        ins=ins,
        outs=matrices.b_SOR.shape[1],
        first=0,
        a=address(matrices.a_SGRI),
        b=address(outputs_last_SRO),
        factors=address(matrices.factors_SO),
        offset=address(matrices.offset_O),
        ranks=address(matrices.ranks_S),
        scaled=address(matrices.scaled_S),
        bounds=address(matrices.bounds_G1),
    )


def _leaf(place: Place, how: Build) -> Leaf:
    if isinstance(place.leaf, parts.Norm):
        return Norm(place.leaf, Site(how, place.path))
    if isinstance(place.leaf, experts.Offsets):
        return Offsets(place.leaf, Site(how, place.path))
    if isinstance(place.leaf, recurrent.Conv):
        return Conv(place.leaf, Site(how, place.path))
    if isinstance(place.leaf, recurrent.PerHead):
        return PerHead(place.leaf, Site(how, place.path))
    if isinstance(place.leaf, sinks.Sinks):
        return Sinks(place.leaf, Site(how, place.path))
    method = how.method(place)
    if isinstance(place.leaf, experts.Stack):
        one = replace(place, leaf=place.leaf.linear)
        several = (method.create(one, how.device, how.dtype, how.kernels) for _ in range(place.leaf.count))
        return PackedStack([leaf for leaf in several if isinstance(leaf, PackedLeaf)])
    return method.create(place, how.device, how.dtype, how.kernels)
