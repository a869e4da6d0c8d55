"""Attention over latents by the CPU's own kernels: the reference's pages, read once for all heads and for all rows that share them.

Suffix legend: T tokens of the step, H query heads, R rank of the latents, P turned dimensions, W = R + P, F = P / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor

from sapwood.attention.base import Batch
from sapwood.attention.latent import LatentReference, Turn, latent_of
from sapwood.attention.native import STORES, InLibrary, step_of
from sapwood.base.kv import KVGroup
from sapwood.kernels.cpu.library import Handle, Heads, Machine, Norm, Step, address

_TILE = 16


class NativeLatent(InLibrary, LatentReference):
    """One group's latents."""

    name = "native-latent"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype not in (torch.float32, torch.float16):
            return f"it stores latents as float32 or float16, not {dtype}"
        if (rank := latent_of(group).rank) % _TILE:
            return f"latents of multiples of {_TILE} numbers are read, and the model's have {rank}"
        return None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype, machine: Machine) -> None:
        super().__init__(group, index, device, dtype)
        kind = self._kind
        sizes = kind.num_heads, kind.num_heads // kind.tile_heads, kind.rank, kind.rope
        self.index, self._machine = index, machine
        self.cells = Handle(machine.library, "latents", STORES[dtype], *sizes, group.page_size)
        self._step: Step | None = None
        self._held: Sequence[object] = ()
        self._batch: Batch

    def allocate(self, num_pages: int) -> None:
        super().allocate(num_pages)
        self._machine.library.latents_place(self.cells.pointer, address(self._cells), self._cells.shape[1])

    def plan(self, batch: Batch) -> None:
        self._batch, self._step = batch, None

    def run(self, layer: int, queries_THW: Tensor, latents_TW: Tensor, turn: Turn, scale: float) -> Tensor:
        if self._step is None:  # not needed by those who compute whole decoders
            self._step, self._held = step_of(self._batch, [self.index])
        queries_THW, cos_TF, sin_TF = (x.float().contiguous() for x in (queries_THW, turn.cos_TF, turn.sin_TF))
        latents_TW = torch.empty(latents_TW.shape).copy_(latents_TW)  # normed and turned where they lie
        how = Heads(
            Norm(address(turn.norm.weight_E), None, turn.norm.eps),
            cos=address(cos_TF),
            sin=address(sin_TF),
            half=cos_TF.shape[1],
            by_token=1,
            interleaved=turn.interleaved,
            layer=layer,
            scale=scale,
        )
        out_THR = torch.empty(*queries_THW.shape[:2], self._kind.rank)
        self._machine.library.latents_attend(
            self._machine.pointer,
            self.cells.pointer,
            byref(how),
            byref(self._step),
            address(queries_THW),
            address(latents_TW),
            latents_TW.stride(0),
            address(out_THR),
        )
        return out_THR
