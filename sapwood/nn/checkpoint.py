"""Checkpoints that say what they hold, and are read in the order in which a model takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate, groupby
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from sapwood.arch.shard import Piece
from sapwood.base.errors import ModelError
from sapwood.hub.files import StoredTensor, tensors_in
from sapwood.nn.ahead import Ahead, Span, Wanted, read
from sapwood.quant.source import Source, Stored

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
})  # fmt: skip


class Checkpoint(Source, Protocol):
    """A source that is told what comes."""

    def expect(self, pieces: Sequence[Piece], *, pinned: bool) -> int:
        """These will be read in this order, each released behind that: read ahead, into `pinned` memory if a GPU is to copy out of
        it. Returns how many bytes they are in the files."""
        ...


class Safetensors:
    """One or several safetensors files. Of a tensor no more is read than what is wanted along its first axes."""

    def __init__(self, paths: Sequence[Path], stack: ExitStack) -> None:
        self._stack, self._ahead = stack, Ahead(())
        self._tensors: dict[str, StoredTensor] = {}
        for path in paths:
            for name, tensor in tensors_in(path).items():
                if name in self._tensors:
                    raise ModelError(f"{path} holds {name}, which another of the model's files holds too.")
                self._tensors[name] = tensor

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def expect(self, pieces: Sequence[Piece], *, pinned: bool) -> int:
        wanted = [one for name, some in groupby(pieces, lambda piece: piece.name) for one in self._wanted(name, some)]
        self._ahead = self._stack.enter_context(Ahead(wanted, pinned=pinned))
        return sum(one.span.size for one in wanted)

    def read(self, name: str, where: tuple[slice, ...]) -> Tensor:
        """A part of what is expected now is at hand; anything else is read on its own."""
        now, region = self._ahead.now, self._region(name, where)
        staged = now is not None and now.name == name and _within(region, now.where)
        first = now.where if now is not None and staged else region
        data = self._ahead.take() if staged else read(self._span(name, region))
        tensor = data.view(self._dtype(name)).view([one.stop - one.start for one in first])
        exact = [slice(*cut.indices(size)) for cut, size in zip(where, self._tensors[name].shape, strict=False)]
        cuts = zip(exact, first, strict=False)
        return tensor[tuple(slice(cut.start - one.start, cut.stop - one.start, cut.step) for cut, one in cuts)]

    def stored(self, name: str, rows: slice) -> Stored | None:
        return None  # rows here are in no blocks

    def release(self, name: str) -> int:
        now = self._ahead.now
        return self._ahead.release() if now is not None and now.name == name else 0

    def _wanted(self, name: str, pieces: Iterator[Piece]) -> Iterator[Wanted]:
        """What is read at once of a tensor that several pieces are of: all, if nothing of it is nobody's."""
        regions = [self._region(name, piece.source) for piece in pieces]
        axes = list(zip(*regions, strict=True))
        hull = tuple(slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in axes)
        distinct = [region for index, region in enumerate(regions) if region not in regions[:index]]
        if _size(hull) <= sum(map(_size, distinct)):
            yield Wanted(name, self._span(name, hull), hull, len(regions))
        else:
            yield from (Wanted(name, self._span(name, region), region) for region in regions)

    def _region(self, name: str, where: tuple[slice, ...]) -> tuple[slice, ...]:
        """The least part of a tensor that holds `where` and is one run of bytes: cut along its first axes."""
        region: list[slice] = []
        for axis, size in enumerate(self._tensors[name].shape):
            single = all(one.stop - one.start == 1 for one in region)
            start, stop, _ = (where[axis] if single and axis < len(where) else slice(None)).indices(size)
            region.append(slice(start, stop))
        return tuple(region)

    def _span(self, name: str, region: tuple[slice, ...]) -> Span:
        tensor = self._tensors[name]
        itemsize = self._dtype(name).itemsize
        strides = list(accumulate(tensor.shape[:0:-1], int.__mul__, initial=itemsize))[::-1]
        start = tensor.start + sum(one.start * stride for one, stride in zip(region, strides, strict=False))
        return Span(tensor.path, start, start + _size(region) * itemsize)

    def _dtype(self, name: str) -> torch.dtype:
        tensor = self._tensors[name]
        if (dtype := _DTYPES.get(tensor.dtype)) is None:
            raise ModelError(f"{tensor.path} holds {name} as {tensor.dtype}, which cannot be read.")
        if prod(tensor.shape) * dtype.itemsize != tensor.stop - tensor.start:
            raise ModelError(
                f"{tensor.path} is damaged: {name} has {tensor.stop - tensor.start} bytes. Fetch it again."
            )
        return dtype


def _size(region: Sequence[slice]) -> int:
    return prod(one.stop - one.start for one in region)


def _within(inner: Sequence[slice], outer: Sequence[slice]) -> bool:
    return all(o.start <= i.start and i.stop <= o.stop for i, o in zip(inner, outer, strict=True))
