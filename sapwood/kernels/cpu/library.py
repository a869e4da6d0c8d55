"""The C++ library, loaded: which build suits the processor, and the C interface as Python sees it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from sapwood.kernels.cpu import build

FOLDER = Path(__file__).parent / "lib"


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float), ("center", c_int)]


class Heads(Structure):
    _fields_ = [
        ("norm", Norm),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("half", c_int),
        ("by_token", c_int),
        ("interleaved", c_int),
        ("late", c_int),
        ("group", c_int),
        ("layer", c_int),
        ("sinks", c_void_p),
        ("scale", c_float),
    ]


class Selection(Structure):
    _fields_ = [
        ("offsets", c_void_p),
        ("top", c_int),
        ("score", c_int),
        ("renormalised", c_int),
        ("groups", c_int),
        ("top_groups", c_int),
        ("group_best", c_int),
        ("scale", c_float),
        ("slack", c_float),
    ]


class Step(Structure):
    _fields_ = [
        ("num_tokens", c_int),
        ("num_rows", c_int),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("starts", c_void_p),
        ("counts", c_void_p),
        ("offsets", c_void_p),
        ("tables", POINTER(c_void_p)),
        ("strides", POINTER(c_int64)),
        ("cells", POINTER(c_void_p)),
        ("num_runs", c_int),
        ("run_lows", c_void_p),
        ("run_highs", c_void_p),
        ("run_firsts", c_void_p),
        ("run_sizes", c_void_p),
        ("run_slots", c_void_p),
        ("run_tokens", c_void_p),
        ("heads", c_void_p),
        ("seconds", c_void_p),
        ("entries", c_void_p),
        ("lengths", c_void_p),
        ("queries", c_void_p),
        ("adapters", c_void_p),
    ]


class Change(Structure):
    _fields_ = [
        ("groups", c_int),
        ("rank", c_int),
        ("ins", c_int),
        ("outs", c_int),
        ("first", c_int),
        ("a", c_void_p),
        ("b", c_void_p),
        ("factors", c_void_p),
        ("offset", c_void_p),
        ("ranks", c_void_p),
        ("scaled", c_void_p),
        ("bounds", c_void_p),
    ]


class Taps(Structure):
    _fields_ = [
        ("weights", c_void_p),
        ("bias", c_void_p),
        ("channels", c_int),
        ("width", c_int),
        ("group", c_int),
        ("layer", c_int),
    ]


class Scan(Structure):
    _fields_ = [
        ("bias", c_void_p),
        ("rates", c_void_p),
        ("skip", c_void_p),
        ("norm", Norm),
        ("heads", c_int),
        ("groups", c_int),
        ("key_size", c_int),
        ("value_size", c_int),
        ("parts", c_int),
        ("query", c_int),
        ("key", c_int),
        ("value", c_int),
        ("step", c_int),
        ("beta", c_int),
        ("gate", c_int),
        ("gates_first", c_int),
        ("low", c_float),
        ("high", c_float),
        ("group", c_int),
        ("layer", c_int),
    ]


STRUCTS: Sequence[type[Structure]] = (Norm, Heads, Selection, Step, Change, Taps, Scan)
"""All that cross, in the order of the library's own list."""


def layout(struct: type[Structure]) -> str:
    """The fields of a struct, where each begins and its size, and the struct's size, as `sapwood_layouts` words it."""
    names = [name for name, *_ in struct._fields_]
    fields = [getattr(struct, name) for name in names]
    places = " ".join(f"{field.offset}:{field.size}" for field in fields)
    return f"{', '.join(f'&{struct.__name__}::{name}' for name in names)} = {places} {ctypes.sizeof(struct)}"


def _status(status: int) -> None:
    """What a function returns that computes on a machine; the numbers are those of `sapwood_cpu.cpp`."""
    if status == 1:
        raise MemoryError("there is no memory for what the CPU kernels compute with")
    if status == 2:
        raise RuntimeError("a forked process has none of the CPU kernels' threads: make a Machine of its own there")


_P, _I, _L, _F = c_void_p, c_int, c_int64, c_float
_SIGNATURES: Mapping[str, tuple[Any, Sequence[Any]]] = {
    "sapwood_version": (_I, []),
    "sapwood_target": (c_char_p, []),
    "sapwood_best": (c_char_p, []),
    "sapwood_layouts": (c_char_p, []),
    "machine_new": (_P, [_I, _I]),
    "machine_free": (None, [_P]),
    "weights_new": (_P, [_I, _I, _I, _I, _I, _I]),
    "weights_free": (None, [_P]),
    "weights_bytes": (_L, [_P]),
    "weights_row_bytes": (_L, [_I, _I]),
    "weights_put": (_status, [_P, _P, _I, _P, _P, _I, _I]),
    "weights_put_codes": (_status, [_P, _P, _P, _P, _P, _P, _F, _I]),
    "weights_copy": (_status, [_P, _P, _P, _I]),
    "weights_rows": (_status, [_P, _P, _P, _I, _F, _P]),
    "linear_new": (_P, []),
    "linear_free": (None, [_P]),
    "linear_add": (None, [_P, _P, _P]),
    "linear_order": (None, [_P, _P]),
    "linear_change": (None, [_P, POINTER(Change)]),
    "linear_apply": (_status, [_P, _P, _P, _I, _P]),
    "cells_new": (_P, [_I, _I, _I, _I, _I, _I, _I]),
    "cells_bend": (None, [_P, _F, _P]),
    "cells_ahead": (None, [_P]),
    "cells_fixed": (None, [_P]),
    "cells_put": (_status, [_P, _P, _I, _I, _P, _I]),
    "cells_free": (None, [_P]),
    "cells_allocate": (_I, [_P, _L]),
    "cells_keys": (_P, [_P]),
    "cells_values": (_P, [_P]),
    "cells_key_scales": (_P, [_P]),
    "cells_value_scales": (_P, [_P]),
    "cells_attend": (_status, [_P, _P, POINTER(Heads), POINTER(Step), _P, _P]),
    "latents_new": (_P, [_I, _I, _I, _I, _I, _I]),
    "latents_free": (None, [_P]),
    "latents_place": (None, [_P, _P, _L]),
    "latents_attend": (_status, [_P, _P, POINTER(Heads), POINTER(Step), _P, _P, _L, _P]),
    "states_new": (_P, [_I, _I]),
    "states_free": (None, [_P]),
    "states_place": (None, [_P, _P, _L, _L]),
    "stack_new": (_P, [_P]),
    "stack_free": (None, [_P]),
    "stack_add_group": (None, [_P, _P]),
    "stack_embed": (None, [_P, _P, _F]),
    "stack_positions": (None, [_P, _P]),
    "stack_segments": (None, [_P, _P]),
    "stack_attend_entries": (None, [_P, _I, _I, _I, _F]),
    "stack_settle": (None, [_P, POINTER(Norm), _I]),
    "stack_norm_columns": (None, [_P, POINTER(Norm), _I, _I, _I, _I]),
    "stack_norm": (None, [_P, POINTER(Norm), POINTER(Norm), _F, _I, _I]),
    "stack_project": (None, [_P, _P, _I, _I]),
    "stack_take_columns": (None, [_P, POINTER(Norm), _I, _I, _I, _I]),
    "stack_attend": (None, [_P, POINTER(Heads), _I, _I]),
    "stack_attend_latents": (
        None,
        [_P, POINTER(Heads), POINTER(c_void_p), POINTER(c_void_p), _I, _I, _I, _I, _I, _I, _I],
    ),
    "stack_short_conv": (None, [_P, POINTER(Taps), _I]),
    "stack_conv_columns": (None, [_P, POINTER(Taps), _I, _I, _I, _I]),
    "stack_scan": (None, [_P, POINTER(Scan), _I, _I, _I, _I, _I]),
    "stack_gate": (None, [_P, _P, _I]),
    "stack_experts": (
        None,
        [_P, POINTER(Selection), POINTER(c_void_p), POINTER(c_void_p), _I, _I, _I, _I, _I, _I],
    ),
    "stack_add_gated": (None, [_P, _I, _I, _I, _I]),
    "stack_finish": (None, [_P, POINTER(Norm), POINTER(Norm), _F, _I, _I]),
    "stack_forward": (_status, [_P, POINTER(Step), _P]),
}


class Library:
    """The functions of `sapwood_cpu.cpp` by name. Calls let other Python threads run."""

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(functions, name)
            function.restype, function.argtypes = result, arguments
        self.functions: Any = functions
        self.target = str(functions.sapwood_target().decode())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.functions, name)


def find(name: str = "auto", folder: Path = FOLDER) -> Library | str:
    """The build for a kind of processor, by default the best for this one; or why there is none."""
    if name == "off":
        return "it is turned off"
    base = _load(build.library(folder, "base"))
    if isinstance(base, str):
        return base
    best = base.sapwood_best().decode()
    if name == "auto":
        name = best
    elif name not in usable(best):
        return f"this processor is no {name}: there are {', '.join(usable(best))}"
    return _load(build.library(folder, name))


def usable(best: str) -> Sequence[str]:
    """The kinds that a processor can run whose best is `best`."""
    order = ("base", "avx2", "avx2vnni", "avx512") if best.startswith("avx") else ("base", "neon")
    kinds = order[: order.index(best) + 1]
    # A processor with AVX-512 need not have AVX-VNNI, the same instructions for shorter vectors.
    return [kind for kind in kinds if kind == best or kind != "avx2vnni"]


@functools.cache
def _load(path: Path) -> Library | str:
    if not path.exists():
        return f"{path.name} was not built: install a C++ compiler, then Sapwood once more"
    try:
        library = Library(path)
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    except AttributeError:  # it lacks a function
        library = None
    if library is None or library.sapwood_version() != build.VERSION:
        return f"{path.name} is of another version: install Sapwood once more"
    compiled = library.sapwood_layouts().decode().splitlines()
    if compiled != [layout(struct) for struct in STRUCTS]:
        return f"{path.name} was built from other sources, whose structs differ: install Sapwood once more"
    return library


class Handle:
    """Something that the library has made, given back when nobody holds it any more."""

    def __init__(self, library: Library, kind: str, *arguments: object) -> None:
        self.library = library
        self.pointer: int | None = getattr(library, f"{kind}_new")(*arguments)
        if not self.pointer:
            raise MemoryError(f"there is no room for {kind}: no memory, or no more threads")
        self._free = getattr(library, f"{kind}_free")

    def __del__(self) -> None:
        if pointer := getattr(self, "pointer", None):
            self._free(pointer)
            self.pointer = None


class Machine(Handle):
    """Threads, and the room that they compute in. One caller at a time, and only in the process that has made it.

    Before they are multiplied with quantised weights, activations are rounded to integers of 8 bits, or of 12 if `fine`.
    """

    def __init__(self, library: Library, threads: int, *, fine: bool = True) -> None:
        super().__init__(library, "machine", threads, fine)
        self.threads = threads


def address(data: Any) -> int:
    """Where a tensor's or an array's elements lie."""
    return int(data.data_ptr() if hasattr(data, "data_ptr") else data.ctypes.data)


def pointers(values: Sequence[int]) -> Any:
    return (c_void_p * len(values))(*values)
