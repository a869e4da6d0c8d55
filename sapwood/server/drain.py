"""The end of a server, as its requests see it: those that have begun finish, others are not begun."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from sapwood.base.errors import Stopping


class Drain:
    """Counts the requests at work. `begun`: no more are taken."""

    def __init__(self) -> None:
        self.begun = False
        self._working = 0
        self._idle = asyncio.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """For as long as a request lasts. Raises Stopping if it must not begin any more."""
        if self.begun:
            raise Stopping
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()

    @property
    def working(self) -> bool:
        """Whether a request is at work, or what one has left running in the background."""
        return self._working > 0

    async def __call__(self) -> None:
        """Take no more, and wait until those at work have ended."""
        self.begun = True
        while self._working:
            self._idle.clear()
            await self._idle.wait()
