"""The only loop. Synchronous, overlapped and pipelined execution differ in `depth` alone.

depth 0    plan 1 | forward, sample 1 | read 1 | plan 2 ...
depth 1    plan 2 and launch it while the device computes 1, then read 1, then plan 3 ...

A step with a late part is sampled after the one before it was read, whatever the depth: that part depends on its tokens,
and is filled while the device computes the step's forward.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic, perf_counter
from typing import Any

import msgspec

from sapwood.base.errors import Lost
from sapwood.base.news import Landing
from sapwood.base.plan import Plan
from sapwood.base.weights import FIRST
from sapwood.base.wire import Abort, Delta, Deltas, Stats, Submit, worded, worded_step
from sapwood.engine.intake import Intake
from sapwood.engine.measures import Measures
from sapwood.executor.base import Executor
from sapwood.scheduler import Scheduler

log = logging.getLogger(__name__)

READY_SECONDS = 0.005  # a wait for a request to become ready while there is nothing else to do
MOST_LANES = 256  # requests that somebody who looks is told of one by one
MOST_FAILURES = 3  # lost steps in a row after which the device is given up

Gauges = Callable[[], tuple[Mapping[str, int], Mapping[str, float]]]
"""Counters and seconds since the start of something that takes part in the engine."""


class DeviceLost(RuntimeError):
    """Step after step fails, or what computes them is gone: this process cannot go on."""


class Engine:
    """A scheduler, an executor, and the order of one step.

    `gauges` are what others count who take part, `pages` tells the KV cache's pages per group as [total, free, evictable],
    and `commands` answer `control` beside the engine's own, `alone` those that touch what steps compute with: none is in flight then.
    `status` is what both add to that answer, `weight_version` that of the weights.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        intake: Intake,
        *,
        depth: int,
        gauges: tuple[Gauges, ...] = (),
        pages: Callable[[], list[list[int]]] = list,
        commands: Mapping[str, Callable[..., dict[str, Any]]] | None = None,
        alone: Mapping[str, Callable[..., dict[str, Any]]] | None = None,
        status: Callable[[], Mapping[str, Any]] = dict,
        weight_version: Callable[[], str] = lambda: FIRST,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.intake = intake
        self.depth = depth
        self.flying: deque[tuple[Plan, Any, float]] = deque()  # with the time of its launch
        self.counters = dict.fromkeys(("steps", "prompt_tokens", "output_tokens", "cached_tokens", "repaired_pages"), 0)
        self.counters |= dict.fromkeys(("finished", "errors"), 0)
        self.measures = Measures()
        self._gauges, self._pages = gauges, pages
        self._commands = {"check": self._check, "status": self._status, "live": self._live, "retract": self._retract}
        self._alone = alone or {}
        self._commands |= {**(commands or {}), **self._alone}
        self._more_status, self._weight_version = status, weight_version
        self._outbox: list[Deltas] = []  # news that nobody has taken yet: a step that fails loses none
        self._failures = 0

    @property
    def occupied(self) -> bool:
        """Whether somebody runs or waits."""
        return bool(self.scheduler.num_running or self.scheduler.num_waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do now: nobody is here, or everything stands still."""
        return not (self.flying or self._outbox or (self.occupied and not self.scheduler.halted))

    def submit(self, message: Submit) -> Delta | None:
        """Take a request in; what is wrong with it comes back as its only news."""
        request = self.intake.request(message)
        if isinstance(request, Delta):
            self.counters["errors"] += 1
            return request
        self.scheduler.add(request)
        return None

    def abort(self, message: Abort) -> list[Delta]:
        return [worded(news) for id in message.ids if (news := self.scheduler.abort(id)) is not None]

    def step(self) -> list[Deltas]:
        """One turn: plan and launch the next step, then read the oldest ones until no more than `depth` are flying.

        A step that raises ends the requests of all steps in flight with an error, and forgets what they computed; what
        had landed before is told.
        """
        self._guarded(self._iterate)
        news, self._outbox = self._outbox, []
        return news

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            log.exception("a step failed; its requests end with an error")
            self.flying.clear()
            self._tell(Landing(news=self.scheduler.fail(f"the engine failed in this step: {error}")))
            if self._failures >= MOST_FAILURES or isinstance(error, Lost):
                raise DeviceLost(f"{self._failures} steps in a row have failed, the last with: {error}") from error

    def _iterate(self) -> None:
        began = perf_counter()
        refused = self.scheduler.usher()
        if refused:
            self._tell(Landing(news=refused))
        plan = self.scheduler.plan()
        launched = perf_counter()
        self.measures.planned(plan, launched - began, self.scheduler.slots.requests)
        if plan is None:
            if self.flying:
                self._land()
            elif self.scheduler.num_waiting:
                self.scheduler.wait(READY_SECONDS)
            return
        # Behind the steps in flight; a device that works on its own returns at once.
        work = self.executor.forward(plan)
        most = 1 if plan.late else max(self.depth, 1)
        while len(self.flying) >= most:
            self._land()
        self.executor.sample(work, self.scheduler.fill(plan, self.executor.proposed(work)))
        self.flying.append((plan, work, launched))
        self._count(plan)
        if not self.depth:
            self._land()

    def _land(self) -> None:
        plan, work, launched = self.flying.popleft()
        began = perf_counter()
        outcome = self.executor.result(work)
        read = perf_counter()
        self._tell(self.scheduler.commit(plan, outcome))
        self.measures.landed(plan, launched=launched, waited_since=began, read=read, done=perf_counter())

    def _tell(self, landing: Landing) -> None:
        self._outbox.append(worded_step(landing, self._weight_version()))
        self.counters["output_tokens"] += len(landing.tokens)
        for news in landing.news:
            self.counters["output_tokens"] += len(news.tokens)
            self.counters["finished"] += news.finish in ("stop", "length")
            self.counters["errors"] += news.finish == "error"
            self.counters["cached_tokens"] += max(news.cached_tokens, 0)

    def _count(self, plan: Plan) -> None:
        self.counters["steps"] += 1
        if plan.num_rows > plan.num_steady:
            self.counters["prompt_tokens"] += int(plan.counts_R[plan.num_steady :].sum())

    def tidy(self) -> bool:
        """While idle, do a short piece of work that later steps will be glad of; False if there is none left."""
        return self.executor.tidy() or self.scheduler.tidy()

    def shutdown(self) -> None:
        """Nothing is asked of it any more: give everything back."""
        self.scheduler.close()
        self.executor.shutdown()

    def audit(self) -> int:
        """Check the stakes' books and mend them; returns how many entries were wrong. Cheap enough while idle."""
        wrong = self.scheduler.audit()
        if wrong:
            self.counters["repaired_pages"] += wrong
            log.error("the books were wrong in %d entries and have been mended; please report this", wrong)
        return wrong

    def stats(self) -> Stats:
        counters = self.counters | {"preemptions": self.scheduler.num_preempted}
        seconds = dict(self.measures.seconds)
        for gauge in self._gauges:
            counts, times = gauge()
            counters |= counts
            seconds |= times
        running, waiting = self.scheduler.num_running, self.scheduler.num_waiting
        return Stats(
            running, waiting, counters, seconds, self._pages(), self.measures.histograms(), self.scheduler.halted
        )

    def control(self, what: str, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Answer a question or carry out a command of `wire.Control`."""
        command = self._commands.get(what)
        if command is None:
            return {"error": f"unknown command {what!r}; there are {', '.join(sorted(self._commands))}"}
        if what in self._alone:
            self._guarded(self._land_all)
        try:
            return command(**(about or {}))
        except Lost as error:
            raise DeviceLost(str(error)) from error

    def _land_all(self) -> None:
        while self.flying:
            self._land()

    def _check(self) -> dict[str, Any]:
        return {"repaired_pages": self.audit()}

    def _status(self) -> dict[str, Any]:
        stats = self.stats()
        told = {"running": stats.running, "waiting": stats.waiting, "pages": stats.pages, "paused": stats.paused}
        return {**told, **self._more_status(), **stats.counters}

    def _retract(self) -> dict[str, Any]:
        return {"retracted": self.scheduler.retract()}

    def _live(self) -> dict[str, Any]:
        """What there is to see of requests, bounded whatever their number."""
        now = monotonic()
        lanes = [lane._asdict() for lane in self.scheduler.lanes(MOST_LANES)]
        for lane in lanes:
            lane["age"] = round(now - lane.pop("arrived"), 3)
        return {"lanes": lanes} | msgspec.structs.asdict(self.stats())
