"""Pages of a device's pools, to host memory and back.

A block holds what all pools of a group have of one page, pool after pool. Where the pools are in the host's memory a page is copied at once.
On a device with a memory of its own both ways are ordered with the steps where they touch the pools, and beside them where they
cross the bus: pages are gathered first, and sent by a stream of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sapwood.attention.base import Backend
from sapwood.base.abilities import Ability
from sapwood.base.pages import STAGING, Bytes, Moves, Rooms
from sapwood.config.options import Config
from sapwood.config.stores import places
from sapwood.device import Device
from sapwood.device.base import Mark
from sapwood.runner.transfer import upload


def pager(
    backends: Sequence[Backend], device: Device, num_blocks: Sequence[int], memory: Rooms | None = None
) -> HostPager | DevicePager:
    """For what `backends` lie in, with so many blocks for each of them; made by `memory` if it is given and the device is the host."""
    if device.can(Ability.HOST):
        return HostPager(backends, num_blocks, memory)
    return DevicePager(backends, device, num_blocks)


def aside(config: Config, device: Device) -> int:
    """Bytes of the device that pages take on their way to stores and back: all that blocks hold, gathered, and once more while they are
    joined or taken apart."""
    ways = bool(places(config.stores)) + bool(config.stores.role)
    return 0 if device.can(Ability.HOST) else ways * 2 * STAGING


def _memory(shapes: Sequence[tuple[int, int]]) -> list[Bytes]:
    return [np.empty(shape, np.uint8) for shape in shapes]


class HostPager:
    """Keeps the protocol `Pager` with pools in the host's memory."""

    def __init__(self, backends: Sequence[Backend], num_blocks: Sequence[int], memory: Rooms | None = None) -> None:
        self.reach(backends)
        sizes = [sum(pool[:, 0].size for pool in pools) for pools in self._pools]
        self.blocks = list((memory or _memory)(list(zip(num_blocks, sizes, strict=True))))

    def reach(self, backends: Sequence[Backend]) -> None:
        """The pools lie elsewhere now."""
        self._pools = [[pool.flatten(2).view(torch.uint8).numpy() for pool in backend.pools()] for backend in backends]

    def save(self, moves: Sequence[Moves]) -> None:
        for kept, block in self._both(moves):
            block[:] = kept

    def load(self, moves: Sequence[Moves]) -> None:
        for kept, block in self._both(moves):
            kept[:] = block

    def done(self, handle: None) -> bool:
        return True

    def _both(self, moves: Sequence[Moves]) -> Iterator[tuple[Bytes, Bytes]]:
        """What a pool has of each page, and its part of the block, both [rows, bytes]."""
        for blocks, pools, some in zip(self.blocks, self._pools, moves, strict=True):
            for page, number in zip(some.pages_M.tolist(), some.blocks_M.tolist(), strict=True):
                first = 0
                for pool in pools:
                    kept = pool[:, page]
                    yield kept, blocks[number, first : first + kept.size].reshape(kept.shape)
                    first += kept.size


class DevicePager:
    """Keeps the protocol `Pager` with pools in a device's own memory."""

    def __init__(self, backends: Sequence[Backend], device: Device, num_blocks: Sequence[int]) -> None:
        self._device, self._place = device, device.place
        self.reach(backends)
        self._blocks = [
            torch.empty(count, sum(_page_bytes(pool) for pool in pools), dtype=torch.uint8, pin_memory=self._pinned)
            for pools, count in zip(self._pools, num_blocks, strict=True)
        ]
        self.blocks: list[Bytes] = [blocks.numpy() for blocks in self._blocks]

    def reach(self, backends: Sequence[Backend]) -> None:
        """The pools lie elsewhere now."""
        self._pools = [[_as_words(pool) for pool in backend.pools()] for backend in backends]

    @property
    def _pinned(self) -> bool:
        return self._device.can(Ability.PINNED)

    @torch.inference_mode()
    def save(self, moves: Sequence[Moves]) -> Mark | None:
        def move(blocks_BY: Tensor, pools: Sequence[Tensor], pages_M: Tensor, numbers: Sequence[int]) -> None:
            gathered_MY = torch.cat([_gather(pool, pages_M) for pool in pools], dim=1)
            self._device.send(gathered_MY, [blocks_BY[number] for number in numbers])

        self._each(moves, move)
        return self._device.sent()

    @torch.inference_mode()
    def load(self, moves: Sequence[Moves]) -> Mark | None:
        def move(blocks_BY: Tensor, pools: Sequence[Tensor], pages_M: Tensor, numbers: Sequence[int]) -> None:
            brought_MY = torch.empty(len(numbers), blocks_BY.shape[1], dtype=torch.uint8, device=self._place)
            for row, number in enumerate(numbers):
                brought_MY[row].copy_(blocks_BY[number], non_blocking=True)
            first = 0
            for pool in pools:
                last = first + _page_bytes(pool)
                _scatter(pool, pages_M, brought_MY[:, first:last])
                first = last

        self._each(moves, move)
        return self._device.mark()

    def done(self, handle: Mark | None) -> bool:
        return handle is None or handle.query()

    def _each(
        self, moves: Sequence[Moves], move: Callable[[Tensor, Sequence[Tensor], Tensor, Sequence[int]], None]
    ) -> None:
        for blocks, pools, some in zip(self._blocks, self._pools, moves, strict=True):
            if len(some.pages_M):
                (pages_M,) = upload([some.pages_M.astype(np.int64)], self._place)
                move(blocks, pools, pages_M, some.blocks_M.tolist())


def _as_words(pool: Tensor) -> Tensor:
    """[rows, pages, words]: as integers, since not every operation knows every dtype that can be stored; as few as there can be."""
    flat = pool.flatten(2)
    return flat.view(torch.uint8 if flat[0, 0].nbytes % 8 else torch.int64)


def _page_bytes(pool: Tensor) -> int:
    return pool.shape[0] * pool[0, 0].nbytes


def _gather(pool: Tensor, pages_M: Tensor) -> Tensor:
    """What a pool has of each page, as bytes [M, Y]."""
    return pool.index_select(1, pages_M).transpose(0, 1).flatten(1).view(torch.uint8)


def _scatter(pool: Tensor, pages_M: Tensor, bytes_MY: Tensor) -> None:
    words = bytes_MY.clone().view(pool.dtype).view(len(pages_M), pool.shape[0], pool.shape[2])
    pool.index_copy_(1, pages_M, words.transpose(0, 1))
