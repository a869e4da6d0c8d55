"""Attention among the tokens of whole texts by the CPU's own kernels: keys and values lie in pages of one layer, where each layer of a
step finds room, and no later step finds anything.

Suffix legend: T tokens, H query heads, X = H + 2K heads side by side, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sapwood.attention.native import Native
from sapwood.base.kv import Heads, KVGroup, Whole
from sapwood.kernels import NormRope
from sapwood.kernels.cpu.library import Machine


class NativeWhole(Native):
    """One group's. They are float32, whatever others keep: they save no memory in the long run."""

    name = "native-whole"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        return Native.refuse(_as_heads(group), device, torch.float32)

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype, machine: Machine) -> None:
        super().__init__(_as_heads(group), index, device, torch.float32, machine)
        machine.library.cells_ahead(self.cells.pointer)

    def pools(self) -> Sequence[Tensor]:
        return ()

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float, sinks_H: Tensor | None = None) -> Tensor:
        return super().run(0, heads_TXD, rope, scale, sinks_H)


def _as_heads(group: KVGroup) -> KVGroup:
    """One layer that keeps what the group has for a step."""
    kind = group.kind
    assert isinstance(kind, Whole), "chosen by kind"
    heads = Heads(kind.num_heads, kind.num_kv_heads, kind.head_dim, kind.window, relative=kind.relative)
    return replace(group, kind=heads, num_layers=1)
