"""Whose turn it is on the event loop."""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Coroutine, Generator
from time import perf_counter
from typing import Any

TURN_SECONDS = 0.002


class Turns:
    """Lets requests begin a few at a time, in the order of arrival: `await turns()`.

    What follows, up to the request's next wait, runs at once. In one pass of the event loop as many may begin as take
    about TURN_SECONDS together, going by the last ones. A crowd that arrives together thus does not hold up the answers
    that are being streamed, and is itself served one after the other instead of a little of each.
    """

    def __init__(self) -> None:
        self._line: deque[asyncio.Future[None]] = deque()
        self._taken = False  # in this pass of the loop
        self._at_once = 1
        self._began = 0.0

    async def __call__(self) -> None:
        loop = asyncio.get_running_loop()
        if self._taken:
            turn = loop.create_future()
            self._line.append(turn)
            await turn
        else:
            self._taken = True
            self._at_once = 1
            self._start_clock()
            loop.call_soon(self._pass_on)

    def _start_clock(self) -> None:
        self._began = perf_counter()

    def _pass_on(self) -> None:
        seconds = perf_counter() - self._began
        self._at_once = min(2 * self._at_once, max(1, int(self._at_once * TURN_SECONDS / seconds)))
        loop, begun = asyncio.get_running_loop(), 0
        # What is scheduled here runs in the next pass of the loop, after one look at its sockets, in this order.
        loop.call_soon(self._start_clock)
        while self._line and begun < self._at_once:
            turn = self._line.popleft()
            if not turn.done():  # it is when who waited was cancelled
                turn.set_result(None)
                begun += 1
        self._taken = begun > 0
        if self._taken:
            loop.call_soon(self._pass_on)


def start_eagerly(work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run a coroutine here and now up to where it has to wait; None if it never does, else the task of the rest.

    For coroutines that rarely wait and do not ask for their task. Raises what the coroutine raises at once.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return asyncio.get_running_loop().create_task(_rest(work, awaited))


async def _rest(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _resumed(work, awaited)


@types.coroutine
def _resumed(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that waits for `awaited` already."""
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                awaited = work.throw(error)
            else:
                awaited = work.send(sent)
    except StopIteration:
        return
