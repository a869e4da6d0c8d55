"""Runs batches beside the requests of clients, and after them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence

from sapwood.server.front import Front
from sapwood.server.openai import files
from sapwood.server.openai.batches import ledger
from sapwood.server.openai.batches.inside import Inside, answer_to
from sapwood.server.openai.batches.ledger import Batch, Job
from sapwood.server.openai.batches.lines import (
    Fault,
    Line,
    LineError,
    LineResult,
    read_lines,
    result_of,
)
from sapwood.server.store import Books

log = logging.getLogger(__name__)

_AT_ONCE = 64  # lines, and never more than half of what the engine runs at once
_LAST = -(2**31)  # the priority of whoever runs when nobody else wants to
_PATIENCE = 0.1  # seconds between two looks at whether somebody waits


class Runner:
    """Every batch has a task; lines of all take their turns at one gate."""

    def __init__(self, front: Front, ask: Inside) -> None:
        self._front = front
        self._ask = ask
        self._tasks: dict[str, asyncio.Task[None]] = {}
        slots = front.config.scheduler.max_num_seqs or 2 * _AT_ONCE
        self._at_once = max(1, min(_AT_ONCE, slots // 2))
        self._gate = asyncio.Semaphore(self._at_once)

    async def resume(self) -> None:
        """Go on with what an earlier server left."""
        for job in await self._front.store.run(ledger.unfinished):
            self.begin(job)

    def begin(self, job: Job) -> None:
        task = asyncio.create_task(self._run(job))
        self._tasks[job.batch.id] = task
        self._front.chores.add(job.batch.id)
        task.add_done_callback(lambda _: self._over(job.batch.id))

    def _over(self, id: str) -> None:
        self._tasks.pop(id)
        self._front.chores.discard(id)

    async def cancel(self, owner: str, id: str) -> Batch:
        """What has been done is kept. Raises RequestError (404)."""
        batch = await self._front.store.run(lambda books: ledger.find(books, owner, id))
        if batch.status in ledger.FINAL or (task := self._tasks.get(id)) is None:
            return batch
        task.cancel()
        await asyncio.wait([task])
        job = await self._front.store.run(lambda books: ledger.cancel(books, id))
        if job is not None:
            self.begin(job)
        return await self._front.store.run(lambda books: ledger.find(books, owner, id))

    async def close(self) -> None:
        """Leave everything to the next server."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, job: Job) -> None:
        store = self._front.store
        try:
            status, faults = await self._worked_off(job)
        except Exception as error:
            log.exception("the batch %s has failed", job.batch.id)
            status, faults = "failed", [Fault("server_error", str(error))]
        await store.run(lambda books: ledger.end(books, job, status, faults))

    async def _worked_off(self, job: Job) -> tuple[str, list[Fault]]:
        """How it has ended, and why if it has failed."""
        owner, batch, _ = job
        store = self._front.store
        if batch.status == "cancelling":
            return "cancelled", []
        content = (await store.run(lambda books: files.find(books, owner, batch.input_file_id))).more
        lines, faults = await asyncio.to_thread(read_lines, content, [batch.endpoint])
        if faults:
            return "failed", faults
        if batch.status == "validating":
            batch.request_counts.total = len(lines)
            batch.become("in_progress")
            await store.run(lambda books: ledger.save(books, batch))
        done = await store.run(lambda books: ledger.done(books, batch.id))
        left = iter([line for line in lines if line.number not in done])
        try:
            async with asyncio.timeout(batch.expires_at - time.time()), asyncio.TaskGroup() as group:
                for _ in range(min(self._at_once, len(lines))):
                    group.create_task(self._work(owner, batch, left))
        except TimeoutError:
            await store.run(lambda books: _expire(books, batch, lines))
            return "expired", []
        return "completed", []

    async def _work(self, owner: str, batch: Batch, lines: Iterator[Line]) -> None:
        for line in lines:
            await self._note(batch, line.number, await self._answer(owner, line))

    async def _note(self, batch: Batch, number: int, result: LineResult) -> None:
        await self._front.store.run(lambda books: ledger.add(books, batch.id, number, result))

    async def _answer(self, owner: str, line: Line) -> LineResult:
        while True:
            async with self._gate:
                await self._nobody_waits()
                result = await answer_to(self._ask, line, caller=owner, priority=_LAST)
            if isinstance(result, LineResult):
                return result
            await asyncio.sleep(result or 1.0)

    async def _nobody_waits(self) -> None:
        while True:
            stats = self._front.engine.stats
            if not self._front.drain.begun and (stats is None or not stats.waiting):
                return
            await asyncio.sleep(_PATIENCE)


def _expire(books: Books, batch: Batch, lines: Sequence[Line]) -> None:
    """What was not done in time has a result that says so."""
    error = LineError("batch_expired", f"The batch was not complete within {batch.completion_window}.")
    for line in lines:
        ledger.add(books, batch.id, line.number, result_of(line, error=error))
