"""GGUF files, opened by mapping them into memory."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize, quant_shape_to_byte_shape
from numpy.typing import NDArray

from sapwood.base.errors import ModelError

_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_DIMS = 4
_NUMBERS: Mapping[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}
_read_u32 = struct.Struct("<I").unpack_from
_read_u64 = struct.Struct("<Q").unpack_from


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """A tensor in the file. `shape` is in numpy's order; `data` are its bytes, rows first, as the blocks of `type`."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    data: NDArray[np.uint8]

    def entries(self) -> tuple[GgufTensor, ...]:
        """The tensors that it is made of along its first axis."""
        return tuple(GgufTensor(self.name, self.shape[1:], self.type, data) for data in self.data)

    def dequantize(self, rows: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float32]:
        """The values, or those of some rows. Raises ModelError for a type that cannot be read."""
        cut = rows if len(self.shape) > 1 else slice(None)  # blocks lie along the last axis
        try:
            values = np.asarray(dequantize(self.data[cut], self.type), dtype=np.float32)
            return values.reshape(-1, *self.shape[1:]) if len(self.shape) > 1 else values[rows]
        except NotImplementedError:
            raise ModelError(f"{self.name} is stored as {self.type.name}, which cannot be read.") from None


@dataclass(frozen=True, eq=False)
class GgufFile:
    """`metadata` values are Python ones; arrays are lists of strings (or of arrays) and numpy arrays of numbers."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    buffer: mmap.mmap

    def span(self, tensor: GgufTensor) -> tuple[int, int]:
        """Where the bytes of a tensor begin in the file and where they end."""
        first: int = tensor.data.ctypes.data - np.frombuffer(self.buffer, np.uint8).ctypes.data
        return first, first + tensor.data.nbytes


def open_gguf(path: Path) -> GgufFile:
    """Map a file and read its header. Raises ModelError if it is cut off or not what it should be."""
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(
                file.fileno(), 0, access=mmap.ACCESS_COPY
            )  # so that arrays may be handed to torch as they are
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        raise ModelError(f"{path} cannot be read: {error}.") from error
    try:
        return _Reader(path, buffer).read()
    except ModelError:
        raise
    except (struct.error, ValueError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path} is corrupt or cut off ({error}): fetch it again.") from error


class _Reader:
    """Walks the header. Reading past the end raises struct.error or ValueError."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self._path, self._buffer, self._at = path, buffer, 0

    def read(self) -> GgufFile:
        self._check_kind()
        num_tensors, num_entries = self._u64(), self._u64()
        metadata = {self._string(): self._value(self._u32()) for _ in range(num_entries)}
        entries = [self._tensor_entry() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        tensors = {name: self._tensor(name, shape, kind, start + offset) for name, shape, kind, offset in entries}
        return GgufFile(self._path, metadata, tensors, self._buffer)

    def _check_kind(self) -> None:
        if self._buffer[:8] == b"version ":
            raise ModelError(
                f"{self._path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository."
            )
        if self._buffer[:4] != b"GGUF":
            raise ModelError(f"{self._path} is not a GGUF file.")
        self._at = 4
        version = self._u32()
        if version not in _VERSIONS and int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise ModelError(f"{self._path} is written for big-endian machines, which cannot be read: convert it anew.")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise ModelError(f"{self._path} has GGUF version {version}; {known} can be read: convert it anew.")

    def _u32(self) -> int:
        (value,) = _read_u32(self._buffer, self._at)
        self._at += 4
        return int(value)

    def _u64(self) -> int:
        (value,) = _read_u64(self._buffer, self._at)
        self._at += 8
        return int(value)

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """The one loop that matters for speed: a vocabulary has several hundred thousand of them."""
        buffer, at, strings = self._buffer, self._at, []
        for _ in range(count):
            end = at + 8 + _read_u64(buffer, at)[0]
            strings.append(buffer[at + 8 : end].decode("utf-8", "replace"))
            at = end
        if at > len(buffer):
            raise ValueError("a string ends beyond the file")
        self._at = at
        return strings

    def _numbers(self, kind: GGUFValueType, count: int) -> NDArray[Any]:
        values: NDArray[Any] = np.frombuffer(self._buffer, _NUMBERS[kind], count, self._at)
        self._at += values.nbytes
        return values

    def _value(self, code: int) -> Any:
        kind = GGUFValueType(code)
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is GGUFValueType.ARRAY:
            return self._array(GGUFValueType(self._u32()), self._u64())
        return self._numbers(kind, 1)[0].item()

    def _array(self, kind: GGUFValueType, count: int) -> Any:
        if kind is GGUFValueType.STRING:
            return self._strings(count)
        if kind is GGUFValueType.ARRAY:
            return [self._value(GGUFValueType.ARRAY) for _ in range(count)]
        return self._numbers(kind, count)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, num_dims = self._string(), self._u32()
        if num_dims > _MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
        shape = tuple(self._u64() for _ in range(num_dims))[::-1]
        return name, shape, GGMLQuantizationType(self._u32()), self._u64()

    def _tensor(self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, start: int) -> GgufTensor:
        if 0 in shape:
            raise ValueError(f"tensor {name!r} is empty")
        byte_shape = quant_shape_to_byte_shape(shape, kind) if shape else (GGML_QUANT_SIZES[kind][1],)
        data = np.frombuffer(self._buffer, np.uint8, prod(byte_shape), start)
        return GgufTensor(name, shape, kind, data.reshape(byte_shape))
