"""One rank of a pipeline's stage: it computes its run of the layers, and what the last stage draws reaches all.

All ranks run all plans. The last stage chooses tokens and tells the ranks at its places in all other stages, which write them to their tables
before the next plan that has anything to do with those slots: a prompt's chunks need not wait for what others say. The first rank hears the
whole outcome too. Messages have a length, and a first byte that says what they are.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sapwood.base.packing import pack_outcome, unpack_outcome
from sapwood.base.plan import Admissions, Drafts, Ints, Known, LatePart, Outcome, Plan
from sapwood.base.trial import Trial
from sapwood.config.options import Config
from sapwood.executor.base import Measured
from sapwood.executor.local import LocalExecutor
from sapwood.parallel.pipe import YIELDS
from sapwood.parallel.segment import Segment
from sapwood.runner.choose import Work

if TYPE_CHECKING:
    from sapwood.arch.network import Network
    from sapwood.catalogue import Catalogue
    from sapwood.hub.draft import DraftModel
    from sapwood.hub.files import ModelFiles

_HEAD = struct.Struct("<cQ")
_TOKENS, _OUTCOME = b"t", b"o"
_TRIED = 4  # steps that are timed: as many by all, whatever each measures


class StageExecutor(LocalExecutor):
    """The Executor of a rank in the stages of `segment`: a worker like any other, which hears of what others draw."""

    def __init__(self, catalogue: Catalogue, segment: Segment) -> None:
        super().__init__(catalogue, segment)
        self._stages = segment
        self._unsettled: deque[tuple[Work, tuple[LatePart, ...]]] = deque()  # whose tokens have not been heard
        self._outcomes: deque[Outcome] = deque()  # that have been heard

    def start(
        self,
        config: Config,
        decoder: Network,
        files: ModelFiles,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
    ) -> Measured:
        width, rank = config.parallel.tensor_parallel_size or 1, self._stages.rank
        last = self._stages.size - width
        self._place, self._ends = rank % width, rank >= last
        self._others = [
            stage * width + self._place for stage in range(last // width)
        ]  # those to be told, if this is the last
        self._count = self._stages.size // width
        return super().start(config, decoder, files, max_drafts=max_drafts, draft=draft)

    def time_steps(self, trials: Sequence[Trial], *, budget: float) -> list[float]:
        """A few, in this stage, as if all others took as long."""
        return [self._count * seconds for seconds in super().time_steps(trials[:_TRIED], budget=0.0)]

    def forward(self, plan: Plan) -> Work:
        if self._unsettled:
            touched = _touched(plan)
            while any(touched.intersection(work.plan.slots_R.tolist()) for work, _ in self._unsettled):
                self._hear()
        return super().forward(plan)

    def sample(self, work: Work, late: tuple[LatePart, ...] = ()) -> None:
        if not self._ends:
            self._unsettled.append((work, late))
            return
        super().sample(work, late)
        if not work.plan.num_heads:
            return
        if work.done is not None:
            work.done.synchronize()
        assert work.tokens_N is not None
        for rank in self._others:
            self._tell(rank, _TOKENS, work.tokens_N.numpy().tobytes())

    def result(self, work: Work) -> Outcome:
        """The first rank has the outcome, others something of no use."""
        while any(one is work for one, _ in self._unsettled):
            self._hear()
        if not self._ends:
            if self._stages.rank:
                return super().result(work)
            while not self._outcomes:
                self._hear()
            return self._outcomes.popleft()
        outcome = super().result(work)
        if not self._place:
            self._tell(0, _OUTCOME, pack_outcome(outcome))
        return outcome

    def _tell(self, rank: int, what: bytes, message: bytes) -> None:
        self._stages.put(rank, YIELDS, memoryview(_HEAD.pack(what, len(message)) + message))

    def _hear(self) -> None:
        """Settle the oldest step whose tokens have not been heard; or take an outcome, if that comes first."""
        if self._unsettled and not self._unsettled[0][0].plan.num_heads:
            self._settle(np.zeros(0, np.int32))
            return
        head = bytearray(_HEAD.size)
        self._stages.fetch(YIELDS, memoryview(head))
        what, length = _HEAD.unpack(head)
        message = bytearray(length)
        self._stages.fetch(YIELDS, memoryview(message))
        if what == _OUTCOME:
            self._outcomes.append(unpack_outcome(bytes(message)))
        else:
            self._settle(np.frombuffer(message, np.int32))

    def _settle(self, drawn: Ints) -> None:
        work, late = self._unsettled.popleft()
        if work.plan.num_heads:
            self.worker.settle(work, drawn)
        super().sample(work, late)


def _touched(plan: Plan) -> set[int]:
    """Slots that a plan reads or writes anything of."""
    found = set(plan.slots_R.tolist())
    for part in plan.parts:
        match part:
            case Admissions(admits):
                found |= {admit.slot for admit in admits}
            case Known(stretches) | Drafts(stretches):
                found |= {one.slot for one in stretches}
    return found


def executor_of(config: Config, catalogue: Catalogue, segment: Segment | None) -> LocalExecutor:
    """What computes on one of the ranks that share `segment`, or alone."""
    if segment is None or config.parallel.pipeline_parallel_size == 1:
        return LocalExecutor(catalogue, segment)
    return StageExecutor(catalogue, segment)
