"""Plans, late parts and outcomes cross a process border: an engine whose device is elsewhere says the same."""

from __future__ import annotations

import multiprocessing
import random
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
import pytest

from sapwood.base.kv import KVGroup
from sapwood.base.packing import (
    pack_late,
    pack_outcome,
    pack_plan,
    unpack_late,
    unpack_outcome,
    unpack_plan,
)
from sapwood.base.plan import Bits, Ints, LatePart, Masks, Outcome, Plan
from sapwood.executor.fake import FakeExecutor
from sapwood.scheduler.roster import NO_SLOTS
from tests.runner.plans import admit, make_plan
from tests.sim.test_drafts import drafted
from tests.sim.test_scheduler import workload
from tests.sim.world import World
from tests.waiting import SECONDS

VOCAB = 50


def serve(pipe: Connection, groups: list[KVGroup], pages: list[int]) -> None:
    """A device in a process of its own: it is told plans, late parts, and when an outcome is wanted, as bytes."""
    device = FakeExecutor.of(groups, pages, max_num_seqs=4, max_model_len=96, vocab_size=VOCAB)
    works: deque[Any] = deque()
    while message := pipe.recv_bytes():
        works.append(device.forward(unpack_plan(message)))
        device.sample(works[-1], unpack_late(pipe.recv_bytes()))
        pipe.send_bytes(pack_outcome(device.result(works.popleft())))


class Remote:
    """An executor whose device is another process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.num_bytes = 0

    def forward(self, plan: Plan) -> Plan:
        message = pack_plan(plan)
        self.num_bytes += len(message)
        self._pipe.send_bytes(message)
        return plan

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        return np.empty((num_rows, width or -(-VOCAB // 32)), np.int32)

    def proposed(self, work: Plan) -> Ints:
        return NO_SLOTS

    def sample(self, work: Plan, late: tuple[LatePart, ...] = ()) -> None:
        self._pipe.send_bytes(pack_late(late))

    def result(self, work: Plan) -> Outcome:
        return unpack_outcome(self._pipe.recv_bytes())


@pytest.fixture
def world() -> Iterator[World]:
    made = World(
        windows=(None, 10), num_pages=(60, 40), max_model_len=96, vocab_size=VOCAB, stakes=drafted(3, 0.7), depth=2
    )
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=serve, args=(there, made.groups, [60, 40]), daemon=True)
    child.start()
    made.device = Remote(here)  # type: ignore[assignment]
    yield made
    here.send_bytes(b"")
    child.join(SECONDS)


def test_an_engine_whose_device_is_another_process(world: World) -> None:
    """With grammars, drafts, windows, aborts, and three steps in flight."""
    workload(world, random.Random(5), num_requests=24, longest=60, poison=None, toys=0.4)
    world.run()
    world.check_outputs()
    world.check_rest()
    assert world.constraints.counters["masks"] and any((plan.heads_R > 1).any() for plan in world.plans)


def test_a_steady_plan_is_small() -> None:
    plan = make_plan([(slot, 900, 1, 1) for slot in range(256)], num_steady=256)
    assert len(pack_plan(plan)) < 256 * 28


def test_what_does_not_fit_is_refused() -> None:
    message = pack_plan(make_plan([(1, 0, 3, 1)], admits=[admit(1, [5, 6, 7])]))
    assert unpack_plan(message).slots_R.tolist() == [1]
    with pytest.raises(msgspec.DecodeError):
        unpack_plan(message[:-3])
    with pytest.raises(msgspec.DecodeError):
        unpack_plan(message.replace(b"<i4", b"|O8"))
    with pytest.raises(NotImplementedError, match="does not travel"):
        pack_late((Masks(np.zeros((1, 1), dtype=object)),))  # type: ignore[arg-type]
