"""One device, driven from this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder
from sapwood.attention.select import BACKENDS, NAMES, Offer
from sapwood.base.abilities import Ability
from sapwood.base.adapters import AdapterHost
from sapwood.base.pages import Pager, Rooms
from sapwood.base.plan import Bits, Floats, Ints, LatePart, Longs, Outcome, Plan
from sapwood.base.trial import Trial
from sapwood.base.weights import Given, Group, Held, Level, Sent
from sapwood.config.options import Config
from sapwood.device import find
from sapwood.executor.base import Measured
from sapwood.hub.draft import DraftModel
from sapwood.hub.files import ModelFiles
from sapwood.nn import renew
from sapwood.nn.experts import num_routed
from sapwood.observe.loading import loading
from sapwood.parallel.joined import joined
from sapwood.parallel.segment import Segment
from sapwood.parallel.trainers import Trainers
from sapwood.runner.assemble import Choices
from sapwood.runner.choose import Work
from sapwood.runner.pace import time_steps
from sapwood.runner.scout import Scout
from sapwood.runner.worker import Worker

if TYPE_CHECKING:
    from sapwood.catalogue import Catalogue


class LocalExecutor:
    """An Executor that is a worker, without anything in between. `catalogue` has what it is put together from; it is one of the ranks
    that share `segment`, if there is one."""

    worker: Worker

    def __init__(self, catalogue: Catalogue, segment: Segment | None = None) -> None:
        self._catalogue, self._segment = catalogue, segment

    def scout(self, config: Config, model: DraftModel) -> Callable[[Ints], Floats]:
        assert isinstance(model.decoder, Decoder), "heads are refused"
        files = None if config.model.load_format == "dummy" else model.files
        with loading() as progress:
            return Scout(config, model.decoder, files, self._catalogue.methods, progress)

    def start(
        self,
        config: Config,
        decoder: Network,
        files: ModelFiles,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
    ) -> Measured:
        began = perf_counter()
        backends = self._catalogue.join("backends", BACKENDS, Offer, NAMES)
        choices = Choices(backends, self._catalogue.methods)
        width = config.parallel.tensor_parallel_size or 1
        mesh, pipe = joined(self._segment, find(config.device.device), width)
        self.worker = worker = Worker(
            config, decoder, files, max_drafts=max_drafts, draft=draft, choices=choices, mesh=mesh, pipe=pipe
        )
        with loading() as progress:
            worker.load(progress)
        rank = 0 if self._segment is None else self._segment.rank
        self._trainers = Trainers(None if worker.device.can(Ability.HOST) else worker.device.place, rank)
        loaded = perf_counter()
        budget = worker.kv_budget()
        return Measured(
            groups=worker.groups,
            kv_bytes=budget,
            backends=tuple(backend.name for backend in worker.backends),
            seconds={"weights": loaded - began, "measure": perf_counter() - loaded},
            computed_by=worker.rank.computed_by,
            num_routed=num_routed(worker.model) if config.parallel.pipeline_parallel_size == 1 else 0,
        )

    def allocate(self, num_pages: Sequence[int]) -> None:
        self.worker.allocate(num_pages)

    def capture(self) -> None:
        self.worker.capture()

    def time_steps(self, trials: Sequence[Trial], *, budget: float) -> list[float]:
        return time_steps(self.worker, trials, budget=budget)

    def pager(self, num_blocks: Sequence[int], memory: Rooms | None = None) -> Pager:
        return self.worker.pager(num_blocks, memory)

    def adapters(self) -> AdapterHost:
        assert self.worker.shelf is not None, "asked only where there may be some"
        return self.worker.shelf

    def forward(self, plan: Plan) -> Work:
        return self.worker.forward(plan)

    def proposed(self, work: Work) -> Ints:
        return self.worker.proposed(work)

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        return self.worker.allocate_masks(num_rows, width)

    def sample(self, work: Work, late: tuple[LatePart, ...] = ()) -> None:
        self.worker.sample(work, late)

    def result(self, work: Work) -> Outcome:
        return self.worker.result(work)

    def tidy(self) -> bool:
        return self.worker.tidy()

    def expert_tokens(self) -> Longs:
        return self.worker.expert_tokens()

    def check_weights(self, given: Given) -> None:
        self.worker.check_weights(given)

    def take_weights(self, given: Given) -> None:
        self.worker.take_weights(given)

    def join(self, group: Group) -> None:
        self._trainers.join(group)

    def leave(self, group_name: str) -> None:
        self._trainers.leave(group_name)

    def receive(self, sent: Sent, folder: str) -> None:
        """All ranks are sent all tensors; the first writes them where all can read."""
        came = self._trainers.receive(sent, Path(folder))
        if self._trainers.rank == 0:
            renew.store_all(came, Path(folder))
        else:
            deque(came, maxlen=0)

    def release(self, held: Sequence[Held], level: Level) -> None:
        self.worker.release(held, level)

    def restore(self, held: Sequence[Held]) -> None:
        self.worker.restore(held)

    def shutdown(self) -> None:
        self.worker.shutdown()
