"""How a part becomes a module: by its type, with everything that it needs as an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.arch import parts
from sapwood.attention.base import Backend
from sapwood.attention.fixed import FixedPool
from sapwood.base.kv import KVKind
from sapwood.kernels import PLAIN, Kernels
from sapwood.parallel import ALONE, NO_PIPE, Mesh, Pipe
from sapwood.quant.base import Choice, everywhere
from sapwood.quant.plain import Plain

Product = Callable[[Tensor], Tensor]


Looked = Callable[[Tensor, Tensor], Tensor]


def as_it_is(project: Product, how: Build) -> Product:
    """A head that is the embedding is no more than that."""
    return project


def as_looked_up(how: Build) -> Looked:
    """Nothing changes the vectors of tokens."""
    return lambda x_TD, ids_T: x_TD


@dataclass(frozen=True, eq=False)
class Build:
    """What modules are made with. `backends` has one entry per KV group of the decoder, in the order of `kv_groups`.

    `max_positions` is how far the tables of rotary angles reach; None means as far as the model does. The ranks of `mesh` have a
    part of the model each, and hidden states pass through the `pipe` where that is one of several stages. `pool` is where what an encoder
    leaves for them lies. `tied` makes what stands for the product of a head that is the embedding;
    `looked` makes what tokens' vectors go through when they have been looked up, with their numbers.
    """

    device: torch.device
    dtype: torch.dtype
    backends: Sequence[Backend]
    kernels: Kernels = PLAIN
    method: Choice = field(default_factory=lambda: everywhere(Plain()))
    max_positions: int | None = None
    mesh: Mesh = ALONE
    pool: FixedPool | None = None
    pipe: Pipe = NO_PIPE
    tied: Callable[[Product, Build], Product] = as_it_is
    looked: Callable[[Build], Looked] = as_looked_up


@dataclass(frozen=True, eq=False)
class Site:
    """Where in the tree a module stands: `path` and `prefix` are its part's, as in `arch.parts.Place`.

    What a mixer keeps there is kept by layer `number` of `backend`, which are those of its kind among the block's `places`. `ropes`
    are all of the model's, in the order of the angles that modules are given. Of what stands at a `parted` one each rank has a part.
    """

    how: Build
    path: str
    prefix: str = ""
    ropes: Sequence[parts.Rope] = ()
    places: Mapping[KVKind, tuple[Any, int]] = field(default_factory=dict)
    backend: Any = None
    number: int = 0
    parted: bool = False

    def make(self, name: str, part: object) -> Any:
        """The module of the part in field `name` of the part that stands here; None for a part that there is not."""
        if part is None:
            return None
        kept: Any = getattr(part, "kv", None)
        backend, number = self.places.get(kept, (None, 0))
        return make(part, replace(self, path=f"{self.path}.{name}", backend=backend, number=number))


class Derived:
    """A module that makes something of its leaves' weights. What rehearsed steps read of it is there before, of the same shape and with any
    numbers: that is when there are no weights yet.

    Attributes:
        again: It may do so again when some of them have changed; else only when all have been loaded anew.
    """

    again = True

    def derive(self) -> None:
        """All of them are there, as they will stay."""
        raise NotImplementedError


def derive(model: nn.Module) -> None:
    """All leaves of a model have their weights."""
    for module in model.modules():
        if isinstance(module, Derived):
            module.derive()


@singledispatch
def make(part: object, site: Site) -> Any:
    """The module of a part. A module's file registers the maker of its part."""
    raise AssertionError(f"no module is known for {type(part).__name__}")
