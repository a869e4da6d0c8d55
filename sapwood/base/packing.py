"""Plans, late parts and outcomes as flat bytes, and back: what crosses to a device in another process.

Typed msgpack, never pickle: arrays travel as their dtype, shape and bytes and come back as views of the message, and a
message that does not fit its type is refused (msgspec.DecodeError). A part is named by its type.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_args

import msgspec
import numpy as np

from sapwood.base.plan import LatePart, Outcome, Part, Plan, Rows

T = TypeVar("T")
_DTYPES = {np.dtype(kind).str: np.dtype(kind) for kind in (np.int32, np.int64, np.bool_, np.float32, np.float16)}


def _flat(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.str in _DTYPES:
        return value.dtype.str, value.shape, np.ascontiguousarray(value).data.cast("B") if value.size else b""
    raise NotImplementedError(f"a {type(value).__name__} does not travel")


def _array(_: Any, value: Any) -> Any:
    kind, shape, data = value
    if kind not in _DTYPES:
        raise ValueError(f"arrays of {kind!r} do not travel")
    return np.frombuffer(data, dtype=_DTYPES[kind]).reshape(shape)


_encode = msgspec.msgpack.Encoder(enc_hook=_flat).encode


class _Parts(msgspec.Struct, frozen=True, array_like=True):
    """Of each part its type's name, and the rest packed."""

    parts: list[tuple[str, msgspec.Raw]]


@dataclass(frozen=True, slots=True, eq=False)
class _Packed(Rows):
    """A plan whose parts are packed."""

    number: int
    parts: _Parts
    late: bool


class _Named:
    """The types of parts by their names, each with what reads it."""

    def __init__(self, kinds: Any) -> None:
        self._decoders = {kind.__name__: msgspec.msgpack.Decoder(kind, dec_hook=_array) for kind in get_args(kinds)}

    def pack(self, parts: tuple[Any, ...]) -> _Parts:
        return _Parts([(type(part).__name__, msgspec.Raw(_encode(part))) for part in parts])

    def unpack(self, packed: _Parts) -> tuple[Any, ...]:
        return tuple(self._decoders[name].decode(rest) for name, rest in packed.parts)


_parts, _late_parts = _Named(Part), _Named(LatePart)
_plans: msgspec.msgpack.Decoder[_Packed] = msgspec.msgpack.Decoder(_Packed, dec_hook=_array)
_outcomes: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Outcome, dec_hook=_array)
_lates: msgspec.msgpack.Decoder[_Parts] = msgspec.msgpack.Decoder(_Parts)


def pack_plan(plan: Plan) -> bytes:
    return _encode(_Packed(**_fields(plan) | {"parts": _parts.pack(plan.parts)}))


def unpack_plan(message: bytes) -> Plan:
    packed = _plans.decode(message)
    return Plan(**_fields(packed) | {"parts": _parts.unpack(packed.parts)})


def _fields(value: Plan | _Packed) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def pack_late(late: tuple[LatePart, ...]) -> bytes:
    return _encode(_late_parts.pack(late))


def unpack_late(message: bytes) -> tuple[LatePart, ...]:
    return _late_parts.unpack(_lates.decode(message))


def pack_outcome(outcome: Outcome) -> bytes:
    return _encode(outcome)


def unpack_outcome(message: bytes) -> Outcome:
    return _outcomes.decode(message)
