"""Quantised weights of any format for the CPU's own kernels. A kind is filled as it is everywhere; then its codes and scales
are laid out anew, as the products read them. Values stay what they are; inputs are rounded as the kernels do it, whatever the
checkpoint says.

Suffix legend: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from sapwood.arch.experts import Stack
from sapwood.arch.parts import Decoder, Leaf, Linear, Place, StoredTensor, walk
from sapwood.arch.shard import Piece
from sapwood.base.errors import ModelError
from sapwood.kernels import Kernels
from sapwood.kernels.cpu.library import Machine
from sapwood.quant.base import Choice, Method
from sapwood.quant.formats.base import Quantised
from sapwood.quant.kinds.base import Kind
from sapwood.quant.kinds.beside import Apart, Beside
from sapwood.quant.kinds.coded import Coded, read_scale
from sapwood.quant.kinds.grouped import Grouped, GroupedForm
from sapwood.quant.kinds.scaled import BLOCK, Scaled, by_row
from sapwood.quant.packed import PACKINGS, Codes, Matrix, Packed, PackedLeaf, PackedWeights
from sapwood.quant.plain import Plain
from sapwood.quant.source import Form, Source, stored


def repacked(choice: Choice, plain: Packed) -> Choice:
    """The choice for the CPU's kernels: `plain` for what is not quantised. There must be nothing that is `unpackable`."""

    def on_kernels(method: Method) -> Method:
        if isinstance(method, Apart):
            return RepackedApart(tuple(map(on_kernels, method.methods)))
        return Repacked(method, plain.machine) if isinstance(method, Quantised) else plain

    return lambda place: on_kernels(choice(place)) if isinstance(place.leaf, Linear | Stack) else plain


def unpackable(choice: Choice, decoder: Decoder) -> str | None:
    """The first weights that the kernels have no form for, in a few words."""

    def known(method: Method, leaf: Leaf) -> bool:
        if isinstance(method, Apart):
            return all(known(one, leaf) for one in method.methods)
        if isinstance(leaf, Stack) and isinstance(method, Quantised) and isinstance(method.form, GroupedForm):
            return not method.form.ordered  # the rows of all experts are gathered as they are
        return isinstance(method, Plain | Quantised)

    places = (place for place in walk(decoder) if isinstance(place.leaf, Linear | Stack))
    chosen = ((choice(place), place.leaf) for place in places)
    return next((method.shown for method, leaf in chosen if not known(method, leaf)), None)


@dataclass(frozen=True)
class Repacked:
    """The Method that keeps what a format's method reads in the kernels' layout."""

    method: Quantised
    machine: Machine

    @property
    def shown(self) -> str:
        return self.method.shown

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        return self.method.tensors(place)

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> RepackedWeights:
        return RepackedWeights(self.method.create(place, device, dtype, kernels), self.machine, kernels)


class RepackedApart(Apart):
    """The same of a Linear whose parts are stored in different ways."""

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> RepackedBeside:
        leaves = [method.create(run, device, dtype, kernels) for method, run in self.runs(place)]
        return RepackedBeside([leaf for leaf in leaves if isinstance(leaf, PackedLeaf)], kernels)


class RepackedWeights(PackedLeaf):
    """A matrix for each of a Linear's parts. The kind is there until all of it has been read."""

    def __init__(self, kind: Kind, machine: Machine, kernels: Kernels) -> None:
        super().__init__(kernels)
        self._kind: Kind | None = kind
        self._machine = machine

    @property
    def _filling(self) -> Kind:
        assert self._kind is not None, "finished already"
        return self._kind

    def load(self, piece: Piece, source: Source) -> None:
        self._filling.load(piece, source)

    def randomize(self, random: torch.Generator) -> None:
        self._filling.randomize(random)

    def finish(self) -> None:
        kind = self._filling
        kind.finish()
        self.order_I = order_of(kind)
        self.matrices = list(_matrices(kind, self._machine))
        self._kind = None
        super().finish()


class RepackedBeside(PackedLeaf):
    """The matrices of several, one behind the other."""

    def __init__(self, leaves: Sequence[PackedLeaf], kernels: Kernels) -> None:
        super().__init__(kernels)
        self._leaves, self._beside = leaves, Beside(leaves, kernels)

    def load(self, piece: Piece, source: Source) -> None:
        self._beside.load(piece, source)

    def randomize(self, random: torch.Generator) -> None:
        self._beside.randomize(random)

    def finish(self) -> None:
        self._beside.finish()
        orders = [leaf.order_I for leaf in self._leaves]
        self.order_I = orders[0]
        for order_I in orders:
            if order_I is not self.order_I and (
                order_I is None or self.order_I is None or not torch.equal(order_I, self.order_I)
            ):
                raise ModelError(
                    "Parts of one product have inputs in different orders (g_idx): quantise without act-order."
                )
        self.matrices = [matrix for leaf in self._leaves for matrix in leaf.matrices]
        super().finish()


def _matrices(kind: Kind, machine: Machine) -> Iterator[Matrix]:
    """Those of its parts. What the kernels have no groups for is widened to float32, as are plain weights that cannot be rounded."""
    first, num_inputs = 0, kind.part.inp
    for part in kind.part.parts:
        some = slice(first, first + part.size)
        codes = codes_of(kind, some)
        if codes is None:
            weights = PackedWeights(machine, PACKINGS[Form.F32], part.size, num_inputs)
            weights.put(stored(kind.dequantised()[some]), 0, part.size)
        else:
            weights = PackedWeights(machine, codes.packing, part.size, num_inputs)
            weights.put_codes(codes)
        yield Matrix(weights, None if kind.bias is None else kind.bias[some].float().contiguous())
        first += part.size


@singledispatch
def codes_of(kind: Kind, some: slice) -> Codes | None:
    """The codes of some outputs of one part; None where the kernels have no such."""
    return None


@codes_of.register
def _scaled(kind: Scaled, some: slice) -> Codes | None:
    codes_OI, scale_OG = kind.values[some].view(torch.uint8), _scales(kind)[some]
    if kind.values.dtype != torch.int8:
        return Codes("e4m3", codes_OI, scale_OG)
    return Codes("i8", codes_OI ^ 128, scale_OG) if kind.part.inp % 32 == 0 else None


def _scales(kind: Scaled) -> Tensor:
    """A scale for each output and group: all of its inputs, or as many as fill blocks wholly."""
    num_outputs, num_inputs = kind.part.out, kind.part.inp
    if kind.form.scales != "block":
        return kind.scale.expand(num_outputs, 1)
    scale = kind.scale if len(kind.scale) == num_outputs else by_row(kind.scale, num_outputs)
    return scale[:, torch.arange(0, num_inputs, math.gcd(BLOCK, num_inputs)) // BLOCK]


@codes_of.register
def _grouped(kind: Grouped, some: slice) -> Codes | None:
    if kind.group % 32:
        return None
    zero_OG = None
    if kind.zero_OG is not None:
        zero_OG = (0 if kind.bits == 4 else 128) - kind.zero_OG[some].float()
    return Codes("u4" if kind.bits == 4 else "i8", kind.codes[some], kind.scale_OG[some].float(), zero_OG)


@codes_of.register
def _coded(kind: Coded, some: slice) -> Codes | None:
    if (kind.group % 32 and kind.group != 16) or kind.part.inp % 32:
        return None
    factor = kind.factor[some][0] if len(kind.factor) > 1 else kind.factor[0]
    scale_OG = read_scale(kind.scale_OG[some], kind.form.scale)
    return Codes("t4", kind.codes_OH[some], scale_OG, table_16=kind.table_16 * factor)


def order_of(kind: Kind) -> Tensor | None:
    """Which input each column of its codes is, if they are in another order."""
    return kind.order_I if isinstance(kind, Grouped) and kind.group % 32 == 0 else None
