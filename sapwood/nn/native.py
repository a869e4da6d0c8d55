"""A whole decoder computed by the CPU's own kernels: one call from token ids to hidden states.

The same parts as `sapwood.nn.model`, which is its twin: float32 activations between products, weights in the precision
of the checkpoint. Between two products nothing is written that the next one does not read.

Suffix legend: T tokens, N rows that need logits, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from sapwood.arch import experts, parts, reader, recurrent, sinks
from sapwood.arch.parts import Decoder, Place, Tied, ropes, walk
from sapwood.arch.positions import Sinusoids
from sapwood.arch.reader import CrossAttention, Twofold
from sapwood.attention.base import Batch
from sapwood.attention.native import InLibrary, step_of
from sapwood.attention.native_fixed import NativeEntries
from sapwood.base.media import Media
from sapwood.kernels.adapters import Matrices
from sapwood.kernels.cpu.library import Change, Machine, address
from sapwood.nn import stack_inputs, stack_latent, stack_states  # noqa: F401 (they bring operations)
from sapwood.nn.adapted import AdaptedWeights, Bank
from sapwood.nn.experts import Offsets
from sapwood.nn.layers import Norm, Rotary, Sinks
from sapwood.nn.make import Build, Product, Site, derive, make
from sapwood.nn.model import finished
from sapwood.nn.reader import Offsets as LogitOffsets
from sapwood.nn.recurrent import Conv, PerHead
from sapwood.nn.stack import Stack, Weights, listing
from sapwood.quant.base import Choice, Leaf, everywhere
from sapwood.quant.packed import PACKINGS, PackedLeaf, PackedWeights
from sapwood.quant.packed_stack import PackedStack
from sapwood.quant.plain import Plain
from sapwood.quant.source import Form, stored

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
        pool: NativeEntries | None = None,
    ) -> None:
        """`pool` is where what an encoder leaves lies, which modules of PyTorch are."""
        self.decoder, self.method, self.device = decoder, method, _CPU
        self._backends, self._machine, self._bank, self._pool = backends, machine, bank, pool
        num_positions = min(max_positions or decoder.max_positions, decoder.max_positions)
        self._rotaries = {rope: Rotary(rope, num_positions, _CPU) for rope in ropes(decoder)}
        how = Build(device=_CPU, dtype=torch.float32, backends=(), method=method)
        how = how if bank is None else replace(how, tied=bank.tied)
        self.classifier = None if decoder.classifier is None else make(decoder.classifier, Site(how, "classifier"))
        within = {} if self.classifier is None else dict(self.classifier.named_modules(prefix="classifier"))
        plainly = replace(how, method=everywhere(Plain()))
        self.encoder = None if decoder.encoder is None else make(decoder.encoder, Site(plainly, "encoder"))
        if self.encoder is not None:
            within |= dict(self.encoder.named_modules(prefix="encoder"))
        self._leaves = all_leaves = {place.path: within.get(place.path) or _leaf(place, how) for place in walk(decoder)}
        leaves = {path: leaf for path, leaf in all_leaves.items() if not path.startswith("encoder.")}
        self._norms = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Norm)}
        self._adapted = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, AdaptedWeights)}
        plain = {**leaves, **{path: leaf.base for path, leaf in self._adapted.items()}}
        # What changes the head is added by PyTorch: it is no operation of the list.
        tied = isinstance(decoder.head, Tied)
        self._head: Product = how.tied(self._product, how) if tied else self._adapted.pop("head", self._product)
        self._packed = {path: leaf for path, leaf in plain.items() if isinstance(leaf, PackedLeaf)}
        self._stacks = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, PackedStack)}
        self._vectors = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Offsets | PerHead | Sinks)}
        self._convs = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Conv)}
        self._logit_offsets = leaves.pop("logit_offsets", None)
        kinds = (self._norms, self._packed, self._stacks, self._vectors, self._convs)
        assert {path for kind in kinds for path in kind} == leaves.keys(), "weights that the kernels cannot read"
        self._stack: Stack | None = None

    # ---- weights

    def leaf(self, path: str) -> Leaf:
        return self._leaves[path]

    def finish(self) -> None:
        """All leaves have their weights."""
        for path, leaf in self._adapted.items():
            self._packed[path].product.adapt(changes_of(leaf.matrices))
        if self.encoder is not None:
            derive(self.encoder)
        self.weights = weights = Weights(
            tables=self._tables(),
            packed=self._packed,
            stacks={path: leaf.products for path, leaf in self._stacks.items()},
            norms=self._norms,
            vectors={path: leaf.weight for path, leaf in self._vectors.items()},
            convs=self._convs,
            angles={rope: rotary.both_2PF for rope, rotary in self._rotaries.items()},
            inputs=None if self._pool is None else len(self._backends),
        )
        cells = [one.cells for one in (*self._backends, self._pool) if one is not None]
        self._stack = Stack(self._machine, cells, list(listing(self.decoder, weights)), weights)

    def _tables(self) -> Mapping[str, PackedWeights]:
        names: tuple[str, ...] = "embed", "positions", "segments"
        found = {path: self._packed[path].first for path in names if path in self._packed}
        if isinstance(part := self.decoder.positions, Sinusoids):
            how = Build(device=_CPU, dtype=torch.float32, backends=(), method=self.method)
            table = PackedWeights(self._machine, PACKINGS[Form.F32], part.count, part.hidden_size)
            table.put(stored(make(part, Site(how, "positions")).table_PE), 0, part.count)
            found["positions"] = table
        return found

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices."""
        return sum(one.nbytes for some in (self._packed, self._stacks) for one in some.values())

    # ---- inputs

    def read(self, media: Sequence[Media], entries: Sequence[int]) -> Tensor:
        """As `Model.read`. The encoder's products are PyTorch's, on as many threads as the kernels have."""
        assert self.encoder is not None and self._pool is not None, "asked only of those that have one"
        others = torch.get_num_threads()
        torch.set_num_threads(self._machine.threads)
        states_TE, lengths = self.encoder(media, self.embed)
        torch.set_num_threads(others)  # see `assemble`
        for index in range(len(self.decoder.blocks)):
            both_TX = self._packed[f"blocks.{index}.mixer.cross.keys_values"].product(states_TE)
            both_T2HD = both_TX.unflatten(-1, (2, self._cross(index).num_heads, -1))
            for entry, one_L2HD in zip(entries, both_T2HD.split(lengths), strict=True):
                self._pool.keep(index, entry, one_L2HD)
        for entry, length in zip(entries, lengths, strict=True):
            self._pool.measure(entry, length)
        return cast(Tensor, states_TE)

    def _cross(self, index: int) -> CrossAttention:
        mixer = self.decoder.blocks[index].mixer
        assert isinstance(mixer, Twofold), "all blocks look at what the encoder leaves"
        return mixer.cross

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
        if self._pool is not None:
            self._pool.tell(step)
        self._machine.library.stack_forward(self._stack.pointer, byref(step), address(hidden_TE))
        if self._pool is not None:
            self._pool.find([self._cross(index).scale for index in range(len(self.decoder.blocks))])
        return hidden_TE

    def states(self, batch: Batch, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        assert not taps, "hidden states between its layers are nowhere to be seen"
        return self.forward(batch), []

    def embed(self, ids_T: Tensor) -> Tensor:
        """float32 embeddings [T, E] of some tokens."""
        return self.weights.tables["embed"].rows(ids_T.long(), self.decoder.embed.scale)

    def _product(self, hidden_NE: Tensor) -> Tensor:
        """The head's own."""
        return self._packed["embed" if isinstance(self.decoder.head, Tied) else "head"].product(hidden_NE)

    def logits(self, hidden_NE: Tensor, *, raw: bool = False) -> Tensor:
        """float32 logits_NV of some of the hidden states."""
        assert self.decoder.head is not None, "asked only of those that have one"
        logits_NV = self._head(hidden_NE)
        if self._logit_offsets is not None:
            logits_NV = self._logit_offsets(logits_NV)
        return finished(self.decoder, logits_NV)

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
    if isinstance(place.leaf, reader.Offsets):
        return LogitOffsets(place.leaf, Site(how, place.path))
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
