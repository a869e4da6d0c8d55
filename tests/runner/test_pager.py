"""Pages go to host memory and come back with the bits that they had, whatever a group keeps and in whatever format."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.attention.base import Backend
from sapwood.attention.latent import LatentReference
from sapwood.attention.reference import Reference
from sapwood.attention.states import States
from sapwood.base.kv import KVGroup, Latent, State
from sapwood.base.pages import STAGING, Moves
from sapwood.config.options import Config, ModelConfig
from sapwood.config.stores import StoreConfig
from sapwood.device import find
from sapwood.runner.pager import DevicePager, HostPager, aside
from tests import kv

PAGES, BLOCKS = 7, 5
HEADS = kv.group(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=5, page_size=4)
ODD = kv.group(num_layers=1, head_dim=3, page_size=1)
STATE = KVGroup(State(((3, 5), (7,))), 2, 8, rewind=2)
LATENT = KVGroup(Latent(4, 6, 2), 2, 4)


def backends(device: torch.device) -> list[Backend]:
    made: list[Backend] = [
        Reference(HEADS, 0, device, torch.float32),
        Reference(HEADS, 1, device, torch.bfloat16),
        Reference(HEADS, 2, device, torch.int8, scaled=True),
        Reference(HEADS, 3, device, torch.float8_e4m3fn),
        Reference(HEADS, 4, device, torch.float8_e4m3fn, scaled=True),
        Reference(ODD, 5, device, torch.int8, scaled=True),
        States(STATE, 6, device, torch.float32),
        LatentReference(LATENT, 7, device, torch.float16),
    ]
    for backend in made:
        backend.allocate(PAGES)
        for pool in backend.pools():
            raw = pool.view(torch.uint8)
            raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8))
    return made


def raw(backend: Backend, page: int) -> list[Tensor]:
    return [pool.view(torch.uint8)[:, page].cpu().clone() for pool in backend.pools()]


def moves(count: int, pages: list[int], blocks: list[int]) -> list[Moves]:
    return [Moves(np.array(pages, np.int32), np.array(blocks, np.int32))] * count


@pytest.mark.parametrize("where", ["host", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_there_and_back(where: str) -> None:
    """Of the host in its own way, and in that of devices."""
    device: Any = find("cpu" if where == "host" else where)
    mine = backends(device.place)
    counts = [BLOCKS] * len(mine)
    pager = HostPager(mine, counts) if where == "host" else DevicePager(mine, device, counts)
    before = [[raw(backend, page) for page in range(PAGES)] for backend in mine]
    saved = pager.save(moves(len(mine), [2, 6, 3], [4, 0, 1]))
    for backend in mine:
        for pool in backend.pools():
            pool.view(torch.uint8)[:, 2:].zero_()  # behind what was asked for
    while not pager.done(saved):
        pass
    for blocks in pager.blocks:
        assert blocks[4].any() and not (blocks[4] == blocks[0]).all()
    loaded = pager.load(moves(len(mine), [5, 1], [4, 0]))
    for backend, was in zip(mine, before, strict=True):
        for page, wanted in ((5, was[2]), (1, was[6]), (0, was[0])):
            assert all(map(torch.equal, raw(backend, page), wanted))
        assert not any(one.any() for one in raw(backend, 4))
    while not pager.done(loaded):
        pass
    assert pager.done(pager.save([Moves(np.zeros(0, np.int32), np.zeros(0, np.int32))] * len(mine))) or where == "cuda"


def test_what_pages_take_on_their_way_is_set_aside() -> None:
    """On devices with a memory of their own, where there are stores."""
    far: Any = SimpleNamespace(can=lambda ability: False)
    model = ModelConfig(model="m")
    kept = Config(model=model, stores=StoreConfig(kv_store="host:1G"))
    assert aside(kept, far) >= STAGING and aside(kept, find("cpu")) == 0 == aside(Config(model=model), far)
