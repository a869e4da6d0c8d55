"""How long requests may take from their arrival to their end."""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar
from time import monotonic
from typing import NamedTuple

from starlette.datastructures import Headers

from sapwood.base.errors import DeadlinePassed, RequestError

HEADER = "X-Request-Timeout"


class Deadline(NamedTuple):
    """The end of a request's time, in monotonic seconds, and how long it is."""

    at: float
    seconds: float

    def passed(self) -> DeadlinePassed:
        return DeadlinePassed(f"The request has not finished within {self.seconds:g} s.")


class Deadlines:
    """The deadline of the request that is being served, if it has one.

    `default` are the seconds of those that ask for none, `most` those that none may exceed; more is cut to that.
    """

    def __init__(self, default: float | None, most: float | None) -> None:
        self._default, self._most = default, most
        self._begun: ContextVar[float] = ContextVar("begun")
        self._deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)

    def begin(self, headers: Headers) -> None:
        """A request has arrived. Raises RequestError for a header that is no time."""
        self._begun.set(monotonic())
        self._deadline.set(None)
        seconds = self._default if self._most is None else min(self._default or math.inf, self._most)
        self._set(seconds)
        if (given := headers.get(HEADER)) is not None:
            self.ask(_seconds(given), HEADER)

    def ask(self, seconds: float | None, param: str) -> None:
        """The client's own wish, in the field or header `param`; None leaves things as they are. Raises RequestError."""
        if seconds is None:
            return
        if not 0 < seconds < math.inf:
            raise RequestError(f"{param} must be a number of seconds above 0.", param=param)
        self._set(seconds if self._most is None else min(seconds, self._most))

    def _set(self, seconds: float | None) -> None:
        self._deadline.set(None if seconds is None else Deadline(self._begun.get() + seconds, seconds))

    def timer(self, end: asyncio.Future[None]) -> asyncio.TimerHandle | None:
        """Will end what waits for `end` with DeadlinePassed."""
        deadline = self._deadline.get()
        if deadline is None:
            return None

        def strike() -> None:
            if not end.done():
                end.set_exception(deadline.passed())

        return asyncio.get_running_loop().call_later(max(deadline.at - monotonic(), 0.0), strike)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
