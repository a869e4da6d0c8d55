"""Responses that run on by themselves, in the background, and whoever listens to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

from starlette.types import Message

from sapwood.server.errors import problem
from sapwood.server.generation import News, generate
from sapwood.server.openai.responses.exchange import Exchange


class Live:
    """A response in the background. Its events are kept: the one with the number n is `events[n]`."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.events: list[bytes] = []
        self._more = asyncio.Event()
        self._over = False
        self._work = ExitStack()
        self._work.enter_context(exchange.front.drain.at_work())
        exchange.writer.queue()
        self._tell(exchange.writer.taken())
        exchange.keep()
        front, choices = exchange.front, exchange.turn.choices
        self.task = asyncio.create_task(front.attended(_nobody, generate(front, choices, self._hear)))
        self.task.add_done_callback(self._end)

    async def follow(self, at: int) -> AsyncIterator[bytes]:
        """The events from number `at` on, those that have come together in one piece, until there are no more."""
        while True:
            more = self._more
            if self.events[at:]:
                yield b"".join(self.events[at:])
                at = len(self.events)
            elif self._over:
                return
            else:
                await more.wait()

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    def _hear(self, news: list[News]) -> None:
        self._tell(self.exchange.push(news))
        if self.exchange.writer.over:  # now: who hears that it is complete may go on from it
            self.exchange.keep(self.events)

    def _end(self, task: asyncio.Task[None]) -> None:
        writer, error = self.exchange.writer, None if task.cancelled() else task.exception()
        complete = writer.over
        if isinstance(error, Exception):
            writer.fail(problem(error))
        elif not complete:
            writer.cancel()
        self._over = True
        self._work.close()
        self._tell(writer.taken())
        if not complete:
            self.exchange.keep(self.events)

    def _tell(self, events: list[bytes]) -> None:
        self.events += events
        self._more.set()
        self._more = asyncio.Event()


class Lives:
    """The responses that run in the background."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Live] = {}

    def begin(self, exchange: Exchange) -> Live:
        live = Live(exchange)
        key = (exchange.owner, exchange.writer.response.id)
        self._running[key] = live
        live.task.add_done_callback(lambda _: self._running.pop(key))
        return live

    def find(self, owner: str, id: str) -> Live | None:
        return self._running.get((owner, id))

    async def close(self) -> None:
        for live in list(self._running.values()):
            await live.cancel()


async def _nobody() -> Message:
    """A client that never hangs up."""
    message: Message = await asyncio.get_running_loop().create_future()
    return message
