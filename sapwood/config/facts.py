"""What `resolve` has to know of the machine and of the model: numbers, measured or read elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup
from sapwood.config.devices import RULES, Rules


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """One device as it was found. Memory in bytes, of the whole device; `dtypes` are the ones it computes in.

    `num_cores` counts the CPU cores this process may use, also where the device is a GPU. `capability` is CUDA's
    compute capability, None on a CPU: what kernels are compiled for, and nothing to compare with.
    """

    kind: str
    index: int = 0
    name: str
    num_cores: int
    total_memory: int
    free_memory: int
    capability: tuple[int, int] | None = None
    dtypes: tuple[str, ...] = ("float32",)
    abilities: frozenset[Ability] = frozenset()

    @property
    def rules(self) -> Rules:
        """How devices of its kind are run."""
        return RULES[self.kind]

    def of_each(self, ranks: int) -> DeviceFacts:
        """What each of several ranks has: a device of its own, or a share of the one that there is."""
        if self.rules.own_memory:
            return self
        memory = {name: getattr(self, name) // ranks for name in ("total_memory", "free_memory")}
        return replace(self, num_cores=max(1, self.num_cores // ranks), **memory)

    @property
    def option(self) -> str:
        """What `--device` calls it."""
        return f"{self.kind}:{self.index}" if self.rules.numbered else self.kind


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model as memory and limits see it.

    `num_parameters` counts elements of the weights, shared ones once. `kv_groups` are the layers' keys and values, in
    pages of any size. `dtype` is the checkpoint's own, without 'torch.'.
    `stored_bytes` are those of a checkpoint in quantised weights, 0 for others; GGUF's are `blocks`. A `foreign` one runs in another library's modules. `draft` is the model that drafts for it, whose groups are
    among its. `default_name` is what clients call the model when nobody says otherwise.
    """

    default_name: str
    max_positions: int
    vocab_size: int
    num_parameters: int
    kv_groups: tuple[KVGroup, ...]
    dtype: str = "bfloat16"
    stored_bytes: int = 0
    blocks: bool = True
    foreign: bool = False
    draft: ModelShape | None = None

    @property
    def chunks(self) -> bool:
        """Whether a text may be computed a part at a time."""
        return all(group.lasts for group in self.kv_groups)
