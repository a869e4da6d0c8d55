"""Stores of KV that lose, delay, damage and refuse pages, on the fake device: outputs are those without them, token for token."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sapwood.base.kv import most_rewound
from sapwood.base.pages import Bytes
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.draft import DraftStake
from sapwood.stores import Done, Key, Names, StoreStake
from tests.sim.drafter import ToyDrafter
from tests.sim.test_scheduler import SHAPES, workload
from tests.sim.world import World, expected


class Unsteady:
    """A store that keeps `kept`, which outlives it, and does each job when it likes, in any order."""

    def __init__(self, rng: random.Random, kept: dict[Key, Bytes]) -> None:
        self._rng, self._kept = rng, kept
        self._tickets = itertools.count()
        self._jobs: list[tuple[int, bool, list[Key], list[Bytes]]] = []
        self._trouble = rng.choice((0.0, 0.0, 0.05, 0.5))
        self.num_loaded = 0
        self.whole: Sequence[int] = ()  # groups of which a page is one thing

    def lookup(self, keys: Sequence[Key]) -> list[bool]:
        return [key in self._kept or self._chance(0.1) for key in keys]

    def seconds(self, keys: Sequence[Key], num_bytes: int) -> float:
        return 0.0

    def submit_store(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        return self._submit(False, keys, pages)

    def submit_load(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        return self._submit(True, keys, pages)

    def poll(self) -> list[Done]:
        now = [job for job in self._jobs if self._rng.random() < 0.3]
        self._jobs = [job for job in self._jobs if job not in now]
        self._rng.shuffle(now)
        return [Done(job[0], [self._move(job[1], *one) for one in zip(job[2], job[3], strict=True)]) for job in now]

    def _submit(self, load: bool, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        ticket = next(self._tickets)
        self._jobs.append((ticket, load, list(keys), list(pages)))
        return ticket

    def _move(self, load: bool, key: Key, page: Bytes) -> bool:
        if load:
            page[:] = 255  # what a damaged page leaves behind
            if key not in self._kept or self._chance(1.0):
                return False
            page[:] = self._kept[key]
            self.num_loaded += 1
            return True
        if self._chance(1.0):
            return False
        # Of what is not divisible the last cell counts; the others are left of drafts.
        counts = slice(-8 if key[-1] in self.whole else None, None)
        assert key not in self._kept or (self._kept[key][counts] == page[counts]).all(), "one name, two contents"
        self._kept[key] = page.copy()
        if self._chance(0.5):
            del self._kept[self._rng.choice(list(self._kept))]
        return True

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share * self._trouble

    def wait(self, seconds: float) -> None:
        pass

    def touch(self, keys: Sequence[Key]) -> None:
        pass

    def delete(self, keys: Sequence[Key]) -> None:
        pass

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        return {}, {}

    def close(self, seconds: float) -> None:
        pass


class Stored(World):
    """A world with a store, whose pages may be those of a world before."""

    def __init__(
        self,
        rng: random.Random,
        shape: dict[str, Any],
        kept: dict[Key, Bytes],
        drafts: int = 0,
        write: Sequence[int | None] = (0, 0, 1, None),
    ) -> None:
        self._rng, self._drafts, self._write = rng, drafts, write
        self.store = Unsteady(rng, kept)
        if drafts:
            shape = shape | {"rewind": most_rewound(drafts, shape.get("depth", 1))}
        super().__init__(**shape, stakes=self._stakes)

    def _stakes(self, slots: Slots) -> Sequence[Stake]:
        self.store.whole = self.kv.tree.whole
        pager = self.device.pager([self._rng.choice((4, 6, 16))] * len(self.groups))
        hits = self._rng.choice(self._write)
        self.stake = StoreStake(self.kv, self.store, pager, Names(b"toy"), hits=hits, lasting=True, clock=lambda: 0.0)
        drafter = ToyDrafter(self._future, truth=0.8, vocab_size=self.vocab_size)
        return (DraftStake(slots, (drafter,), most=self._drafts), self.stake) if self._drafts else (self.stake,)

    def _future(self, request: Any) -> list[int]:
        prompt = request.tokens[: request.prompt_len].tolist()
        return expected(prompt, request.limit, request.stop_ids, self.vocab_size)

    def step(self) -> bool:
        stepped = super().step()
        self.check_tree()
        return stepped or self.scheduler.num_waiting > 0

    def settle(self) -> None:
        """All jobs done; then every block is free."""
        while self.stake.tidy():
            pass
        while self.store._jobs:
            self.stake._poll()
        for blocks in (self.stake.departures._blocks, self.stake.arrivals._blocks):
            assert len({len(free) for free in blocks.free}) == 1
        both = zip(self.stake.departures._blocks.free, self.stake.arrivals._blocks.free, strict=True)
        assert all(sorted(one + other) == list(range(len(one) + len(other))) for one, other in both)
        assert not self.stake.arrivals._arrivals and not self.stake.arrivals._came


def lives(shape: dict[str, Any], seed: int, write: Sequence[int | None] = (0, 0, 1, None)) -> tuple[int, int]:
    """Three engines, one after another, with the same store and work that has much in common."""
    rng = random.Random(seed)
    kept: dict[Key, Bytes] = {}
    work, drafts = rng.randrange(1 << 30), rng.choice((0, 0, 3))
    loaded = cached = 0
    for _ in range(3):
        world = Stored(rng, shape, kept, drafts, write)
        longest = min(shape.get("max_model_len", 128), 60)
        workload(world, random.Random(work), num_requests=12, longest=longest, poison=shape.get("poison"))
        world.run()
        world.check_outputs()
        world.check_rest()
        if rng.random() < 0.5:
            world.stake.departures.leave()
        world.settle()
        loaded += world.store.num_loaded
        cached += world.stake.arrivals.num_pages
    return loaded, cached


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.get("reuse", True)], ids=str)
def test_random_workloads(shape: dict[str, Any]) -> None:
    told = [lives(shape, seed) for seed in range(5)]
    loaded, restored = (sum(column) for column in zip(*told, strict=True))
    assert loaded > 0 and restored > 0, (loaded, restored)


def test_a_second_engine_computes_only_the_end() -> None:
    rng, kept = random.Random(4), dict[Key, np.ndarray[Any, Any]]()
    prompt = [rng.randrange(50) for _ in range(61)]
    fed = []
    for _ in range(2):
        world = Stored(rng, {"depth": 0}, kept, write=(0,))
        world.store._trouble = 0.0
        world.add(prompt, 1)
        world.run()
        world.check_outputs()
        world.settle()
        fed.append(world.device.num_fed)
    assert fed == [61, 1]
    assert world.cached[1] == 60


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.get("reuse", True)], ids=str)
def test_what_is_evicted_is_kept(shape: dict[str, Any]) -> None:
    """Pages are copied after the plan that evicts them, and before anything is written over them."""
    told = [lives(shape, seed, (None,)) for seed in range(50, 53)]
    loaded, restored = (sum(column) for column in zip(*told, strict=True))
    assert loaded > 0 and restored > 0, (loaded, restored)


@pytest.mark.parametrize("lasting", [True, False])
def test_nothing_is_written_while_all_fits(lasting: bool) -> None:
    rng, kept = random.Random(4), dict[Key, np.ndarray[Any, Any]]()
    prompt = [rng.randrange(50) for _ in range(61)]
    world = Stored(rng, {"depth": 0}, kept, write=(None,))
    world.store._trouble, world.stake._lasting = 0.0, lasting
    world.add(prompt, 1)
    world.run()
    world.settle()
    assert not kept
    world.stake.close()
    world.settle()
    assert (len(kept) > 0) == lasting
