"""A model that is another library's modules: what is known of it is what it weighs, and what its attention keeps.

`sapwood.foreign` reads that off the modules themselves, and runs them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sapwood.arch.families.readers import reader
from sapwood.arch.family import Family
from sapwood.arch.parts import Block, Leaf, Linear, StoredTensor, Tied
from sapwood.arch.share import WHOLE_MODEL, Stage
from sapwood.base.kv import Heads

LIBRARY = "transformers"


def is_foreign(impl: str, config: Mapping[str, Any], families: Collection[Family]) -> bool:
    """Whether a model of that config.json runs in the library's modules: `impl` is the option, which may leave it open."""
    names = list(config.get("architectures") or [])
    known = any([family.architecture] == names for family in families) or (
        len(names) == 1 and reader(names[0], tuple(families)) is not None
    )
    return impl == LIBRARY or (impl == "auto" and not known and importlib.util.find_spec(LIBRARY) is not None)


@dataclass(frozen=True)
class Whole(Leaf):
    """All weights of the modules, each under the name that it has there."""

    stored: tuple[StoredTensor, ...]

    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.stored


@dataclass(frozen=True)
class Call:
    """One of the calls of attention that a forward makes: causal, of queries and keys that are placed already. Values may be
    shorter than keys; what is kept of both is of one size."""

    kv: Heads
    value_dim: int
    scale: float


@dataclass(frozen=True)
class Foreign:
    """A `Network` with a block for each call of attention, in the order in which a forward makes them. `config` is the
    config.json that the modules are made of; tensors `aside` are nobody's."""

    architecture: str
    max_positions: int
    dtype: str | None
    vocab_size: int
    hidden_size: int
    weights: Whole
    blocks: tuple[Block, ...]
    aside: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)

    before: ClassVar[tuple[str, ...]] = ("weights",)
    behind: ClassVar[tuple[str, ...]] = ()
    block_prefix: ClassVar[str] = ""
    root: ClassVar[str] = ""
    head: ClassVar[Linear | Tied | None] = None
    writes: ClassVar[bool] = True
    classifier: ClassVar[None] = None
    encoder: ClassVar[None] = None
    quantization: ClassVar[Mapping[str, Any] | None] = None
    portion: ClassVar[None] = None
    stage: ClassVar[Stage] = WHOLE_MODEL

    def owns(self, tensor: str) -> bool:
        return tensor not in self.aside

    @property
    def calls(self) -> Sequence[Call]:
        found = [block.mixer for block in self.blocks]
        return [call for call in found if isinstance(call, Call)]
