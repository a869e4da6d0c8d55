"""Weights for the CPU's own kernels: in the precision that the checkpoint has them in, or rounded when they are loaded.

A GGUF file's blocks are not widened: they are laid out anew, 16 outputs side by side, as the products of
`sapwood.kernels.cpu` read them. Scales of K-quants, products of two numbers in the file, are rounded to float16.

Suffix legend: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sapwood.arch.parts import Embedding, Leaf, Linear, Place, StoredTensor
from sapwood.arch.positions import Positions, Segments
from sapwood.arch.shard import Piece
from sapwood.kernels import Kernels
from sapwood.kernels.cpu.library import Change, Handle, Machine, address
from sapwood.quant.base import Weights
from sapwood.quant.source import FLOATS, Form, Source, Stored, plain, stored

Rounded = Literal["int8", "int4"]
"""Group-wise, 32 inputs a group: int8 is symmetric, int4 has a minimum. As GGUF's Q8_0 and Q4_1."""

_ROWS_AT_ONCE = 1024  # of floats that are widened before they are rounded


class Packing(NamedTuple):
    """What the kernels make of it: the kind's number in `weights.h`, inputs that share a scale, what there is beside scales
    (the number there too), and whether they are float32 instead of float16."""

    kind: int
    group: int = 1
    minima: int = 0
    wide: bool = False


_F32, _F16, _BF16, _U4, _I8, _T4, _E4M3 = range(7)
_NONE, _MINIMA, _ZEROS = range(3)
_PLAIN: Mapping[int, torch.dtype] = {_F32: torch.float32, _F16: torch.float16, _BF16: torch.bfloat16}
PACKINGS: Mapping[Form, Packing] = {
    Form.F32: Packing(_F32),
    Form.F16: Packing(_F16),
    Form.BF16: Packing(_BF16),
    Form.Q4_0: Packing(_U4, 32),
    Form.Q4_1: Packing(_U4, 32, _MINIMA),
    Form.Q4_K: Packing(_U4, 32, _MINIMA),
    Form.Q5_0: Packing(_I8, 32),
    Form.Q5_1: Packing(_I8, 32, _MINIMA),
    Form.Q5_K: Packing(_I8, 32, _MINIMA),
    Form.Q6_K: Packing(_I8, 16),
    Form.Q8_0: Packing(_I8, 32),
}
_ROUNDED: Mapping[Rounded, Packing] = {"int8": PACKINGS[Form.Q8_0], "int4": PACKINGS[Form.Q4_1]}
_DTYPES = {form: dtype for dtype, form in FLOATS.items()}


def packing(form: Form, num_inputs: int, rounded: Rounded | None) -> Packing:
    """Quantised rows stay as they are; plain ones are rounded if that is asked for and their groups are whole."""
    if rounded is not None and form in FLOATS.values() and num_inputs % 32 == 0:
        return _ROUNDED[rounded]
    return PACKINGS[form]


CodeKind = Literal["u4", "i8", "t4", "e4m3"]
_CODES: Mapping[CodeKind, int] = {"u4": _U4, "i8": _I8, "t4": _T4, "e4m3": _E4M3}


@dataclass(frozen=True, eq=False)
class Codes:
    """Quantised weights whose value is (v + zero) * scale, where the v of a code is for

    - u4: the code - 8, or where there are zeros the code;
    - i8: the code - 128;
    - t4: what `table_16` has for it;
    - e4m3: the float8 with that byte.

    `codes` are uint8 [O, I], or of four bits [O, I / 2] with the even input in the low nibble. Groups of inputs have a scale
    and, if there are any, a zero each: float32 [O, G]. Zeros go with u4 and i8. Groups are multiples of 32; those of t4 may be 16,
    and those of e4m3 anything.
    """

    kind: CodeKind
    codes: Tensor
    scale_OG: Tensor
    zero_OG: Tensor | None = None
    table_16: Tensor | None = None

    @property
    def num_inputs(self) -> int:
        return self.codes.shape[1] * (2 if self.kind in ("u4", "t4") else 1)

    @property
    def packing(self) -> Packing:
        """Scales are float16 where that changes none of them."""
        wide = self.kind == "e4m3" or not torch.equal(self.scale_OG.half().float(), self.scale_OG)
        zeros = _NONE if self.zero_OG is None else _ZEROS
        return Packing(_CODES[self.kind], self.num_inputs // self.scale_OG.shape[1], zeros, wide)

    def rows(self, some: slice) -> Codes:
        """Those of some outputs."""
        zero_OG = None if self.zero_OG is None else self.zero_OG[some]
        return Codes(self.kind, self.codes[some], self.scale_OG[some], zero_OG, self.table_16)


class _Integers(NamedTuple):
    """Values as multiples of a unit: the integers of the first table (int8 [2, 16]), or if they are `fine` 128 times those and
    the second's."""

    tables: Tensor | None
    unit: float
    fine: bool


def _integers(table_16: Tensor) -> _Integers:
    """Exact where integers of 8 bits are, else within 1/32512 of the largest."""
    most = float(table_16.abs().max()) or 1.0
    exact_M = torch.arange(1, 128)
    multiples_M16 = table_16.double() / most * exact_M[:, None]
    found = ((multiples_M16 - multiples_M16.round()).abs().amax(dim=1) < 1e-4).nonzero()
    if len(found):
        first = int(found[0])
        upper_16 = multiples_M16[first].round()
        return _Integers(torch.stack([upper_16, torch.zeros(16)]).to(torch.int8), most / (first + 1), False)
    both_16 = (table_16.double() / most * (127 * 128)).round()
    upper_16 = (both_16 / 128).round()
    return _Integers(torch.stack([upper_16, both_16 - 128 * upper_16]).to(torch.int8), most / (127 * 128), True)


class PackedWeights(Handle):
    """[O, I] in the layout of the kernels."""

    def __init__(self, machine: Machine, packing: Packing, num_outputs: int, num_inputs: int) -> None:
        if num_inputs % max(32 if packing.kind in (_U4, _I8, _T4) else 1, packing.group):
            raise ValueError(f"{num_inputs} inputs do not fill groups of {packing.group}")
        super().__init__(machine.library, "weights", *packing, num_outputs, num_inputs)
        self.machine, self.packing = machine, packing
        self.num_outputs, self.num_inputs = num_outputs, num_inputs

    @property
    def nbytes(self) -> int:
        return int(self.library.weights_bytes(self.pointer))

    def put(self, rows: Stored, first: int, number: int) -> None:
        """Outputs [first, first + number) from rows whose form has this packing, or from plain rows to be rounded."""
        if rows.form in FLOATS.values() and PACKINGS[rows.form] != self.packing:
            for start, part in _widened(rows, number):
                self._put(Stored(Form.F32, part), first + start, len(part))
        else:
            self._put(rows, first, number)

    def _put(self, rows: Stored, first: int, number: int) -> None:
        size = self.library.weights_row_bytes(int(rows.form), self.num_inputs)
        needed = number if rows.order is None else int(rows.order[:number].max(initial=-1)) + 1
        if not size or rows.data.nbytes < needed * size or first + number > self.num_outputs:
            raise ValueError(
                f"{rows.data.nbytes} bytes of {rows.form.name} are not {number} rows of {self.num_inputs} inputs, "
                f"or do not fit into {self.num_outputs} from {first} on"
            )
        order = None if rows.order is None else address(rows.order)
        self.library.weights_put(
            self.machine.pointer, self.pointer, int(rows.form), address(rows.data), order, first, number
        )

    def put_codes(self, codes: Codes) -> None:
        """All outputs; the packing is that of the codes."""
        assert codes.packing == self.packing
        assert (len(codes.codes), codes.num_inputs) == (self.num_outputs, self.num_inputs)
        table = _Integers(None, 0.0, False) if codes.table_16 is None else _integers(codes.table_16)
        fields = (codes.codes, codes.scale_OG, codes.zero_OG, table.tables)
        held = [None if field is None else field.contiguous() for field in fields]
        places = [None if field is None else address(field) for field in held]
        self.library.weights_put_codes(self.machine.pointer, self.pointer, *places, table.unit, table.fine)

    def copy(self, first: int, number: int) -> PackedWeights:
        """So many outputs from `first` on, to the last bit."""
        made = PackedWeights(self.machine, self.packing, number, self.num_inputs)
        self.library.weights_copy(self.machine.pointer, made.pointer, self.pointer, first)
        return made

    def rows(self, ids_T: Tensor, factor: float = 1.0) -> Tensor:
        """The float32 weights [T, I] of some outputs (int64), times a factor."""
        ids_T = ids_T.contiguous()
        rows_TI = torch.empty(len(ids_T), self.num_inputs)
        self.library.weights_rows(
            self.machine.pointer, self.pointer, address(ids_T), len(ids_T), factor, address(rows_TI)
        )
        return rows_TI


def _widened(rows: Stored, number: int) -> Iterator[tuple[int, Tensor]]:
    """Plain rows as float32, some at a time, each with the number of its first."""
    for start in range(0, number, _ROWS_AT_ONCE):
        some = slice(start, min(start + _ROWS_AT_ONCE, number))
        part = rows.data[some if rows.order is None else rows.order[some]]
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(np.ascontiguousarray(part)).view(_DTYPES[rows.form])
        yield start, part.float().contiguous()


class Product(Handle):
    """y_TO = x_TI W (+ b), with the outputs of one or several weights side by side."""

    def __init__(
        self, *weights: PackedWeights, biases: Mapping[int, Tensor] | None = None, order_I: Tensor | None = None
    ) -> None:
        """`biases` are float32 and contiguous, by the index of their weights. Column i of the weights is input `order_I[i]`,
        int32."""
        self.machine = weights[0].machine
        super().__init__(self.machine.library, "linear")
        self._held = (weights, dict(biases or {}), order_I)
        self._change: Change | None = None
        if order_I is not None:
            self.library.linear_order(self.pointer, address(order_I))
        self.num_inputs, self.num_outputs = weights[0].num_inputs, sum(one.num_outputs for one in weights)
        for index, one in enumerate(weights):
            bias = self._held[1].get(index)
            self.library.linear_add(self.pointer, one.pointer, None if bias is None else address(bias))

    def adapt(self, change: Change) -> None:
        """Adapters may change it as this says, whose tensors live as long as it does. To be called before it is in a list of operations."""
        self._change = change
        self.library.linear_change(self.pointer, byref(change))

    def cut(self, number: int) -> tuple[Product, Product]:
        """The first `number` weights, and the others, as products of their own."""
        weights, biases, order_I = self._held
        last = {index - number: bias for index, bias in biases.items() if index >= number}
        first = {index: bias for index, bias in biases.items() if index < number}
        both = (
            Product(*weights[:number], biases=first, order_I=order_I),
            Product(*weights[number:], biases=last, order_I=order_I),
        )
        if (change := self._change) is not None:
            both[0].adapt(change)
            behind = Change.from_buffer_copy(change)
            behind.first = both[0].num_outputs
            both[1].adapt(behind)
        return both

    def __call__(self, x_TI: Tensor) -> Tensor:
        """float32 in and out. Quantised weights are multiplied with int8 activations, a scale for 32 of them."""
        x_TI = x_TI.float().contiguous()
        y_TO = torch.empty(len(x_TI), self.num_outputs)
        self.library.linear_apply(self.machine.pointer, self.pointer, address(x_TI), len(x_TI), address(y_TO))
        return y_TO


class Packed:
    """The Method that keeps weights in the checkpoint's precision, in the layout of the CPU's kernels, or rounds plain ones."""

    def __init__(self, machine: Machine, rounded: Rounded | None = None) -> None:
        self.machine, self.rounded = machine, rounded

    @property
    def shown(self) -> str:
        return "weights as they are stored" if self.rounded is None else f"weights rounded to {self.rounded}"

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        return place.leaf.tensors()

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> PackedLinear:
        return PackedLinear(place.leaf, self.machine, self.rounded, kernels)


class Matrix(NamedTuple):
    """Of a part of a Linear. The bias is float32 and contiguous."""

    weights: PackedWeights
    bias: Tensor | None = None


class PackedLeaf(Weights):
    """Weights that the kernels read. Who writes `finish` puts `matrices` there, side by side in the outputs, and `order_I` as
    `Product` has it, and calls this one's."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels)
        self.matrices: Sequence[Matrix] = ()
        self.order_I: Tensor | None = None
        self.product: Product

    def finish(self) -> None:
        biases = {index: bias for index, (_, bias) in enumerate(self.matrices) if bias is not None}
        self.product = Product(*(weights for weights, _ in self.matrices), biases=biases, order_I=self.order_I)

    @property
    def first(self) -> PackedWeights:
        """The first matrix, which is all of a table."""
        return self.matrices[0].weights

    @property
    def nbytes(self) -> int:
        return sum(weights.nbytes for weights, _ in self.matrices)

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.product(x_TI).to(x_TI.dtype)


class PackedLinear(PackedLeaf):
    """A matrix for each of a Linear's parts, or the one of a table, whose rows can be read. Memory is taken as pieces come,
    since they say what form they have; a part may come in several, all of one form."""

    def __init__(self, part: Leaf, machine: Machine, rounded: Rounded | None, kernels: Kernels) -> None:
        super().__init__(kernels)
        if isinstance(part, Linear):
            self._sizes, self._inp, has_bias = [one.size for one in part.parts], part.inp, part.bias
        else:
            assert isinstance(part, Embedding | Positions | Segments)
            count = part.vocab_size if isinstance(part, Embedding) else part.count
            self._sizes, self._inp, has_bias = [count], part.hidden_size, False
        self._machine, self._rounded = machine, rounded
        self._packed: dict[int, PackedWeights] = {}  # by their first output
        self._bias = torch.zeros(sum(self._sizes)) if has_bias else None

    @property
    def refills(self) -> bool:  # type: ignore[override]
        return self._rounded is not None or all(one.packing.kind in _PLAIN for one in self._packed.values())

    def load(self, piece: Piece, source: Source) -> None:
        rows = piece.target[0]
        if piece.param == "bias":
            assert self._bias is not None
            self._bias[rows] = plain(piece, source).float()
        else:
            blocks = None if piece.transposed or piece.unit_rows else source.stored(piece.name, piece.source[0])
            if blocks is None or blocks.form not in PACKINGS:
                blocks = stored(self._as_kept(rows.start, plain(piece, source)))
            self._put(rows.start, blocks, rows.stop)

    def _as_kept(self, first: int, values_OI: Tensor) -> Tensor:
        """In the dtype that the part of output `first` has, if it is filled already, and plain."""
        kept = self._packed.get(self._begin(first))
        return values_OI if kept is None or kept.packing.kind not in _PLAIN else values_OI.to(_PLAIN[kept.packing.kind])

    def _begin(self, first: int) -> int:
        """The first output of the part that has this one."""
        begins = list(itertools.accumulate(self._sizes, initial=0))
        return begins[bisect.bisect_right(begins, first) - 1]

    def randomize(self, random: torch.Generator) -> None:
        values_OI = torch.empty(sum(self._sizes), self._inp).normal_(std=0.02, generator=random)
        first = 0
        for size in self._sizes:
            self._put(first, stored(values_OI[first : first + size]), first + size)
            first += size
        if self._bias is not None:
            self._bias.normal_(std=0.02, generator=random)

    def _put(self, first: int, rows: Stored, end: int) -> None:
        """Pack the rows that are outputs [first, end), of one part."""
        begin = self._begin(first)
        if begin not in self._packed:
            form, sizes = packing(rows.form, self._inp, self._rounded), self._sizes
            size = sizes[list(itertools.accumulate(sizes, initial=0)).index(begin)]
            self._packed[begin] = PackedWeights(self._machine, form, size, self._inp)
        self._packed[begin].put(rows, first - begin, end - first)

    def finish(self) -> None:
        bias = self._bias
        self.matrices = [
            Matrix(one, None if bias is None else bias[first : first + one.num_outputs])
            for first, one in sorted(self._packed.items())
        ]
        super().finish()
