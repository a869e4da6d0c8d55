"""One worker in this process."""

from __future__ import annotations

from sapwood.base.plan import Bits, LatePart, Outcome, Plan
from sapwood.runner.choose import Work
from sapwood.runner.worker import Worker


class LocalExecutor:
    """An Executor on one device, without anything in between."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def forward(self, plan: Plan) -> Work:
        return self.worker.forward(plan)

    def room(self, num_rows: int, width: int | None = None) -> Bits:
        return self.worker.room(num_rows, width)

    def sample(self, work: Work, late: tuple[LatePart, ...] = ()) -> None:
        self.worker.sample(work, late)

    def result(self, work: Work) -> Outcome:
        return self.worker.result(work)

    def tidy(self) -> bool:
        return self.worker.tidy()

    def shutdown(self) -> None:
        self.worker.shutdown()
