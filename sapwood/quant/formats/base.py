"""What formats are written with: the tensors of a part, the method made of them, and the choice by the names of modules.

Suffix legend: I inputs, O outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from sapwood.arch.parts import Axis, Place, StoredTensor
from sapwood.base.errors import ModelError
from sapwood.kernels import Kernels
from sapwood.kernels.planes import E2M1
from sapwood.quant.base import Choice, Method, linear_at
from sapwood.quant.kinds.base import Fields, Form, Kind, Turn
from sapwood.quant.kinds.beside import Apart
from sapwood.quant.plain import Plain

PLAIN = Plain()


@dataclass(frozen=True)
class Cut:
    """An axis of outputs or inputs, of which the tensor has one entry for `by`, rounded up."""

    of: Literal["out", "in"]
    by: int = 1

    def axis(self, axis: Axis) -> Axis:
        first, whole = axis.first, axis.size if axis.whole is None else axis.whole
        if axis.turn is not None:
            if self.by > 1:
                raise ModelError("Parts that take turns in a fused tensor have their scales or codes together there.")
            return replace(axis, joined=False)
        if first % self.by:
            raise ModelError(f"A fused tensor has a part from row {first} on, which is within a group of {self.by}.")
        size, unit = -(-axis.size // self.by), None
        if axis.unit is not None and self.by <= axis.size:  # else one entry is for all, and every rank has it
            unit = size if axis.size % self.by else max(axis.unit // self.by, 1)
        return Axis(size, unit, first // self.by, -(-whole // self.by), once=axis.once)


OUT, IN = Cut("out"), Cut("in")
ONE = Cut("in", 1 << 30)
"""A single entry for all inputs."""


@dataclass(frozen=True)
class Raw:
    """A tensor of a part: `name` behind the part's and a dot. Without `axes` it is read whole, whatever its shape; then ranks do not
    cut the Linear, unless it is the `same` for all of it."""

    name: str
    axes: tuple[Cut | Axis, ...] | None = None
    optional: bool = False
    same: bool = False


@dataclass(frozen=True)
class Quantised:
    """The Method of a format: its tensors, the kind that they become, and how."""

    form: Form
    raws: tuple[Raw, ...]
    turn: Turn

    @property
    def shown(self) -> str:
        return self.form.shown

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        linear = linear_at(place)
        found = [tensor for tensor in linear.tensors() if tensor.param == "bias"]
        for raw in self.raws:  # what parts have of one tensor is read at once
            for index, part in enumerate(linear.parts):
                axes = {"out": linear.rows(index), "in": linear.columns}
                cuts = None
                if raw.axes is not None:
                    cuts = tuple(cut.axis(axes[cut.of]) if isinstance(cut, Cut) else cut for cut in raw.axes)
                name = f"{part.name}.{raw.name}"
                if raw.name != "bias" or not linear.bias:
                    found.append(StoredTensor(f"{index}.{raw.name}", name, cuts, optional=raw.optional, same=raw.same))
        return found

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Kind:
        return self.form.make(linear_at(place), device, dtype, kernels, self.turn)


def by_module(method_of: Callable[[str], Method]) -> Choice:
    """The choice that asks for each of a Linear's parts, by its module's name in the checkpoint."""

    def choice(place: Place) -> Method:
        found = tuple(method_of(place.prefix + part.name) for part in linear_at(place).parts)
        return found[0] if all(one == found[0] for one in found) else Apart(found)

    return choice


def matches(name: str, pattern: str) -> bool:
    """Whether a section's pattern means a module: its name, what it is within, a run of its name, with wildcards or `re:`."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    if "*" in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    return f".{pattern}." in f".{name}."


class Patterns:
    """Many of a section's patterns at once, for models that have a great many modules."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._names = frozenset(one for one in patterns if not one.startswith("re:") and "*" not in one)
        self._lengths = sorted({one.count(".") + 1 for one in self._names})
        self._others = [one for one in patterns if one not in self._names]

    def match(self, name: str) -> bool:
        """Whether one of them means a module, as `matches` has it."""
        steps = name.split(".")
        for length in self._lengths:
            for first in range(len(steps) - length + 1):
                if ".".join(steps[first : first + length]) in self._names:
                    return True
        return any(matches(name, pattern) for pattern in self._others)


_APART = (".router", ".shared_gate", "join")
"""How paths end of Linears that some formats leave as they are without a word: routers, and what joins the two inputs of a head that drafts."""


def excepting(method: Method, excepted: Sequence[str], *, heads: bool = False, routers: bool = True) -> Choice:
    """The method everywhere but where the section excepts modules; and in heads and routers, where a format leaves those as
    they are without a word."""

    patterns = Patterns(excepted)

    def method_of(name: str) -> Method:
        plain = patterns.match(name) or (name == "lm_head" and not heads)
        return PLAIN if plain else method

    among = by_module(method_of)
    return lambda place: PLAIN if place.path.endswith(_APART) and not routers else among(place)


class Section:
    """A config's `quantization_config`, read so that what is not understood is refused by name."""

    def __init__(self, fields: Mapping[str, Any], where: str = "quantization_config") -> None:
        self.fields, self._where = fields, where

    def get(self, name: str, *known: Any, default: Any = None) -> Any:
        """A field that must be one of those that are known, if any are named. Raises ModelError."""
        value = self.fields.get(name)
        value = default if value is None else value
        if known and value not in known:
            raise self.wrong(name, f"what can be read: {', '.join(map(str, known))}")
        return value

    def names(self, *fields: str) -> list[str]:
        """Names of modules, from all fields that may hold some."""
        return [str(name) for field in fields for name in self.fields.get(field) or ()]

    def wrong(self, name: str, because: str) -> ModelError:
        return ModelError(f"config.json: {self._where}.{name} = {self.fields.get(name)!r} is not supported; {because}.")


def sorted_by_group(codes_OI: Tensor, group_I: Tensor) -> dict[str, Tensor]:
    """Codes whose columns are sorted by the group of each, so that groups are runs, and the order that they are then in."""
    order_I = torch.sort(group_I, stable=True).indices
    return {"codes": codes_OI[:, order_I], "order": order_I.int()}


def e2m1(codes_OH: Tensor, scale_OG: Tensor, factor: Tensor) -> Fields:
    """The fields of codes into the values of e2m1."""
    return {"codes": codes_OH, "scale": scale_OG, "factor": factor, "table": torch.tensor(E2M1, device=codes_OH.device)}


def want(raw: Fields, name: str, *dtypes: torch.dtype) -> Tensor:
    """A tensor that has to hold what the format says. Raises ModelError."""
    tensor = raw[name]
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ModelError(f"A quantised module's {name} holds {tensor.dtype}, where its config wants {wanted}.")
    return tensor


def taken_apart(words: Tensor, bits: int, *, dim: int, order: Sequence[int] | None = None) -> Tensor:
    """The uint8 codes of int32 words along an axis, the first in the lowest bits, or as `order` says: entry i of a word is
    its `order[i]`-th from below."""
    shifts = [bits * i for i in (order or range(32 // bits))]
    last = words.movedim(dim, -1)
    shifted = last[..., None] >> torch.tensor(shifts, device=words.device, dtype=torch.int32)
    codes = (shifted & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)
    return codes.movedim(-1, dim)
