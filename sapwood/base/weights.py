"""Weights that are given to a model that runs, and what of a model may leave its device for a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

FIRST = "default"
"""The version of the weights that an engine starts with."""

Held = Literal["weights", "kv_cache"]
"""What an engine holds of a device that it can do without while it sleeps."""

ALL: Sequence[Held] = ("weights", "kv_cache")

Level = Literal[1, 2]
"""Where weights are meanwhile: in the host's memory, or nowhere, so that they are read again."""


Backend = Literal["nccl", "gloo"]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Processes in which a trainer sends weights, and where they meet: it is rank 0 of `world_size`, the engine's ranks are those from `rank_offset`
    on. As SGLang and vLLM name the fields."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    group_name: str
    backend: Backend = "nccl"


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors that a group's trainer broadcasts, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    group_name: str


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors to be put in the place of those that a model has, by the names of its checkpoint.

    Attributes:
        path: A safetensors file, or a directory of some as a checkpoint is. Files in shared memory are as good as others.
        whole: It has all of the model's weights; else those that are there are changed.
        checksums: SHA-256 of tensors' bytes in hexadecimal, by name, where they are to be compared first.
    """

    path: str
    whole: bool = True
    checksums: dict[str, str] = {}
