"""What the parts of a plan do on the device, found by their types.

Pages and shared runs are none of these: they are read by the step itself (`frame`, `shared`), and masks by what chooses
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from sapwood.attention.base import Backend
from sapwood.base.plan import Adapters, Admissions, Carry, Copies, Drafts, Embed, Encode, Gaps, Inputs, Known
from sapwood.runner.adapters import Shelf
from sapwood.runner.inputs import InputReader
from sapwood.runner.sight import Sight
from sapwood.runner.table import Table
from sapwood.runner.transfer import upload


@dataclass(frozen=True, eq=False)
class Memory:
    """What a device keeps from step to step: a table of slots, keys and values per KV group, what is known of media, what reads
    inputs, if it does, and adapters, if there may be any."""

    table: Table
    backends: Sequence[Backend]
    sight: Sight | None = None
    reader: InputReader | None = None
    adapters: Shelf | None = None


@singledispatch
def before(part: object, memory: Memory) -> None:
    """Before the step's forward; most parts have nothing to do then."""


@singledispatch
def after(part: object, memory: Memory) -> None:
    """Behind all that the step writes."""


@before.register
def _(part: Admissions, memory: Memory) -> None:
    memory.table.install(part.admits)


@before.register
def _(part: Known, memory: Memory) -> None:
    memory.table.write(part)


@before.register
@after.register
def _(part: Drafts, memory: Memory) -> None:
    memory.table.draft(part)


@before.register
def _(part: Copies, memory: Memory) -> None:
    for backend, pages in zip(memory.backends, part.copies, strict=True):
        if len(pages.sources_C):
            both = [pages.sources_C.astype(np.int64), pages.targets_C.astype(np.int64)]
            copy_pages(backend, *upload(both, memory.table.device))


@before.register
def _(part: Carry, memory: Memory) -> None:
    assert memory.sight is not None, "asked only of models with an encoder"
    memory.sight.carry(part)


@before.register
def _(part: Encode, memory: Memory) -> None:
    assert memory.sight is not None, "asked only of models with an encoder"
    memory.sight.encode(part)


@before.register
def _(part: Embed, memory: Memory) -> None:
    assert memory.sight is not None, "asked only of models with an encoder"
    memory.sight.embed(part)


@before.register
def _(part: Inputs, memory: Memory) -> None:
    assert memory.reader is not None, "planned for models that read inputs"
    memory.reader.take(part)


@before.register
def _(part: Gaps, memory: Memory) -> None:
    memory.table.spread(part)


@before.register
def _(part: Adapters, memory: Memory) -> None:
    assert memory.adapters is not None, "told of none without it"
    memory.adapters.apply(part)


def copy_pages(backend: Backend, sources_C: Tensor, targets_C: Tensor) -> None:
    """Copy whole pages, all layers: int64 device tensors of page numbers, sources and targets disjoint."""
    for pool in backend.pools():
        pages = pool.flatten(2)
        # As integers, since not every operation knows every dtype that can be stored; as few of them as there can be.
        pages = pages.view(torch.uint8 if pages[0, 0].nbytes % 8 else torch.int64)
        pages.index_copy_(1, targets_C, pages.index_select(1, sources_C))
