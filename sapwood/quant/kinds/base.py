"""What kinds of weights have in common: they are filled from what a format turns a checkpoint's tensors into.

Suffix legend: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.arch.parts import Linear
from sapwood.arch.shard import Piece
from sapwood.base.errors import ModelError
from sapwood.kernels import Activation, Kernels, RmsNorm
from sapwood.kernels.planes import Planes
from sapwood.quant.base import Weights
from sapwood.quant.source import Source, plain

Fields = Mapping[str, Tensor]
"""The canonical tensors of one of a Linear's parts, by the names that its kind gives them."""

Turn = Callable[[Fields], Fields]
"""From the tensors that a format has for a part, by the ends of their names, to the kind's. Raises ModelError."""

Pieces = list[tuple[tuple[slice, ...], Tensor]]
"""What has been read of a tensor, each with its place there."""

_BY_OUTPUT = frozenset({"values", "codes", "scale", "zero"})


_HALVES = (torch.bfloat16, torch.float16)
"""What kernels of quantised weights compute in."""


class Form(Protocol):
    """Which kind of weights there is to be, with all that is known of it before they are read. Forms are values: equal ones
    make equal weights."""

    @property
    def shown(self) -> str:
        """What is multiplied, in a few words."""
        ...

    def make(self, part: Linear, device: torch.device, dtype: torch.dtype, kernels: Kernels, turn: Turn) -> Kind:
        """Its weights, not yet filled."""
        ...


class Kind(Weights):
    """Canonical weights on a device. A kind writes `fill`, `made_up` and `dequantised`, and `lay_out` where kernels can read
    it: then `planes` take the place of the canonical tensors.

    What has been read of the parts is kept, in the format's own tensors, until the last piece of this Linear is there: no
    more than one Linear is ever in memory twice.
    """

    def __init__(self, part: Linear, device: torch.device, dtype: torch.dtype, kernels: Kernels, turn: Turn) -> None:
        super().__init__(kernels)
        self.part, self.device, self.dtype, self._turn = part, device, dtype, turn
        self.planes: Planes | None = None
        self._read: dict[int, dict[str, Pieces]] = {}
        self.bias: nn.Parameter | None = None
        if part.bias:
            self.bias = kept(torch.zeros(part.out, device=device, dtype=dtype))

    @abstractmethod
    def fill(self, parts: Sequence[Fields]) -> None:
        """Take the canonical tensors of all parts, on the device. Raises ModelError where their shapes are others."""

    @abstractmethod
    def made_up(self, size: int, random: torch.Generator) -> Fields:
        """Random canonical tensors of a part with so many outputs."""

    @abstractmethod
    def dequantised(self) -> Tensor:
        """float32 weight_OI, in the order of the inputs."""

    def lay_out(self) -> Planes | None:
        """What is there as the kernels of a GPU read it; None where they cannot."""
        return None

    def arrange(self) -> None:
        """Lay out anew what is there, as the device's kernels want it."""
        if self._kernels.quantised is not None and self.dtype in _HALVES:
            self.planes = self.lay_out()
        if self.planes is not None:
            for name in self._canonical:
                delattr(self, name)

    @property
    def _canonical(self) -> list[str]:
        """Those of the canonical tensors that are there."""
        return [name for name in self._parameters if name != "bias"]

    def _ready(self) -> Planes | None:
        """What kernels read. Before weights are there it is made up, so that they can be compiled for it."""
        if self.planes is None and self._kernels.quantised is not None and not self._canonical:
            self.randomize(torch.Generator(self.device))
            self.arrange()
        return self.planes

    def empty(self) -> None:
        """Give its weights back, which somebody else has now."""
        self.planes = None
        for name in self._canonical:
            delattr(self, name)

    def rounded(self, x_TI: Tensor) -> Tensor:
        """The inputs as they enter the product: a kind that rounds them does it here."""
        return x_TI

    def load(self, piece: Piece, source: Source) -> None:
        self.planes = None
        if piece.param == "bias":
            assert self.bias is not None
            self.bias[piece.target] = plain(piece, source).to(self.device, self.dtype)
            return
        index, _, name = piece.param.partition(".")
        tensor = source.read(piece.name, piece.source)
        tensor = (tensor.T if piece.transposed else tensor).to(self.device, copy=True)
        self._read.setdefault(int(index), {}).setdefault(name, []).append((piece.target, tensor))

    def randomize(self, random: torch.Generator) -> None:
        self.fill([self.made_up(part.size, random) for part in self.part.parts])
        if self.bias is not None:
            self.bias.normal_(std=0.02, generator=random)

    def finish(self) -> None:
        if self._read:
            parts = [self._part(index, self._read.pop(index)) for index in sorted(self._read)]
            self._add_biases(parts)
            self.fill(parts)
        self.arrange()

    def _part(self, index: int, read: Mapping[str, Pieces]) -> Fields:
        return self._own(index, self._turn({name: _whole(pieces) for name, pieces in read.items()}))

    def _own(self, index: int, fields: Fields) -> Fields:
        """A part's rows of what a format could only read whole."""
        rows = self.part.rows(index)
        if rows.whole == rows.size:
            return fields
        own = slice(rows.first, rows.first + rows.size)
        return {
            name: tensor[own] if tensor.dim() and len(tensor) == rows.whole and name in _BY_OUTPUT else tensor
            for name, tensor in fields.items()
        }

    def _add_biases(self, parts: Sequence[Fields]) -> None:
        """Those that a format has though the model has none."""
        if any("bias" in fields for fields in parts):
            sizes = [part.size for part in self.part.parts]
            none = [torch.zeros(size, device=self.device) for size in sizes]
            biases = [fields.get("bias", zero) for fields, zero in zip(parts, none, strict=True)]
            self.bias = kept(torch.cat([bias.float() for bias in biases]).to(self.dtype))

    def forward(self, x_TI: Tensor) -> Tensor:
        if (planes := self._ready()) is not None:
            return self._kernels.planes(x_TI, planes, self.bias)[0]
        return F.linear(self.rounded(x_TI), self.dequantised().to(x_TI.dtype), self.bias)

    def normed(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm, activation: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        if (planes := self._ready()) is not None:
            return self._kernels.planes(x_TI, planes, self.bias, norm, residual_TI, activation)
        return super().normed(x_TI, residual_TI, norm, activation)

    def rounds(self, num_tokens: int) -> bool:
        planes = self._ready()
        return planes is not None and self._kernels.rounds(planes, num_tokens)

    def gated(self, x_T2I: Tensor, gate: Activation) -> Tensor:
        if (planes := self._ready()) is not None:
            return self._kernels.gated_planes(x_T2I, planes, self.bias, gate)
        return super().gated(x_T2I, gate)


def _whole(pieces: Pieces) -> Tensor:
    """A tensor from its pieces, which are all of it."""
    if len(pieces) == 1:
        return pieces[0][1]
    shape = [max(target[axis].stop for target, _ in pieces) for axis in range(pieces[0][1].dim())]
    whole = pieces[0][1].new_empty(shape)
    for target, tensor in pieces:
        whole[target] = tensor
    return whole


def kept(tensor: Tensor) -> nn.Parameter:
    """A tensor of a module."""
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def shaped(fields: Fields, name: str, *shape: int) -> Tensor:
    """A field that has to have a shape. Raises ModelError."""
    tensor = fields[name]
    if tuple(tensor.shape) != shape:
        raise ModelError(f"The quantised weights' {name} is {list(tensor.shape)}, wants {list(shape)}.")
    return tensor


def joined(parts: Sequence[Fields], name: str, sizes: Sequence[int], columns: int) -> Tensor:
    """A field of all parts, [size, columns] each, one below the other."""
    return torch.cat([shaped(fields, name, size, columns) for fields, size in zip(parts, sizes, strict=True)])


def unpacked(codes_OH: Tensor) -> Tensor:
    """4-bit codes two to a byte, the even input in the low nibble, as uint8 [O, I]."""
    return torch.stack((codes_OH & 15, codes_OH >> 4), dim=-1).flatten(-2)


def packed(codes_OI: Tensor) -> Tensor:
    """uint8 codes below 16 as two to a byte: what `unpacked` takes apart."""
    return codes_OI[..., 0::2] | (codes_OI[..., 1::2] << 4)
