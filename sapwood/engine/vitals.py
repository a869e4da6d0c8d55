"""Whether an engine lives, as far as its front can tell from what it says."""

from __future__ import annotations

import asyncio
from time import monotonic

from sapwood.base.wire import Beat, FromEngine

FRESH_SECONDS = 3.0
"""An engine at work says something about every second, so one that was heard so lately is alive."""


class Vitals:
    """When an engine was heard last, and since when somebody waits to hear of it.

    Attributes:
        heard: When something came from it, in monotonic seconds.
        step_seconds: How long its loop had then been at what it does; 0 after other news.
    """

    def __init__(self) -> None:
        self.heard = self._since = monotonic()
        self.step_seconds = 0.0
        self._awaited = asyncio.Event()

    def hear(self, message: FromEngine) -> None:
        """The last of what has just come."""
        self.heard = monotonic()
        self.step_seconds = message.seconds if isinstance(message, Beat) else 0.0

    def begin(self) -> None:
        """A new engine."""
        self.heard, self.step_seconds = monotonic(), 0.0

    def ask(self) -> None:
        """Somebody waits for it."""
        if not self._awaited.is_set():
            self._since = monotonic()
            self._awaited.set()

    def rest(self) -> None:
        """Nobody waits for it."""
        self._awaited.clear()

    async def awaited(self) -> None:
        await self._awaited.wait()

    @property
    def fresh(self) -> bool:
        return monotonic() - self.heard <= FRESH_SECONDS

    @property
    def silent_seconds(self) -> float:
        """How long somebody has waited and nothing has come."""
        return monotonic() - max(self.heard, self._since)
