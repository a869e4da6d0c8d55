"""How a part becomes a module: by its type, with everything that it needs as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import torch

from sapwood.arch import parts
from sapwood.attention.base import Backend
from sapwood.kernels import PLAIN, Kernels
from sapwood.quant.base import Method
from sapwood.quant.plain import Plain


@dataclass(frozen=True, eq=False)
class Build:
    """What modules are made with. `backends` has one entry per KV group of the decoder, in the order of `kv_groups`.

    `max_positions` is how far the tables of rotary angles reach; None means as far as the model does.
    """

    device: torch.device
    dtype: torch.dtype
    backends: Sequence[Backend]
    kernels: Kernels = PLAIN
    method: Method = field(default_factory=Plain)
    max_positions: int | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """Where a block's attention keeps its keys and values (layer `number` of `backend`), and which ropes there are."""

    backend: Backend
    number: int
    ropes: Sequence[parts.Rope]


@singledispatch
def make(part: object, how: Build, layer: Layer | None) -> Any:
    """The module of a part; `layer` is None outside the blocks. A module's file registers the maker of its part."""
    raise AssertionError(f"no module is known for {type(part).__name__}")
