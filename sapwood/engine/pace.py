"""How fast generations end, for those who wait to begin."""

from __future__ import annotations

from collections import deque
from time import monotonic

_REMEMBERED = 64


class Pace:
    """Counts the last generations that have ended by themselves."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)

    def ended(self) -> None:
        self._ends.append(monotonic())

    def seconds(self, count: int) -> float | None:
        """In how long `count` more should have ended, if that is known. A lull since the last one counts."""
        if len(self._ends) < 2:
            return None
        return count * (monotonic() - self._ends[0]) / len(self._ends)
