"""Whether a prefix is there sooner if it is loaded than if it is computed, by what both have taken of late.

    load where    bytes / bandwidth of the places that have it  <  tokens / prefill rate

Either side counts as nothing where it has not been measured yet, the right one as more: the first prefix is loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

from sapwood.base.plan import Plan, Rows

_LEAST = 64
"""Prompt tokens of a step that tells something of how fast prompts are computed."""

_SHARE = 0.25  # of the last such step


class PrefillRate:
    """Prompt tokens a second: `planned` and `landed` see every step. `clock` is in seconds.

    Attributes:
        rate: 0 before there was a step to go by.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.rate = 0.0
        self._clock = clock
        self._began: deque[float] = deque()
        self._landed = 0.0

    def planned(self, rows: Rows) -> None:
        self._began.append(self._clock())

    def landed(self, plan: Plan) -> None:
        now = self._clock()
        since = max(self._landed, self._began.popleft()) if self._began else now
        self._landed = now
        if int(plan.counts_R[plan.num_steady :].sum()) >= _LEAST and now > since:
            measured = plan.num_tokens / (now - since)
            self.rate += (measured - self.rate) * (_SHARE if self.rate else 1.0)

    def reset(self) -> None:
        self._began.clear()

    def seconds(self, num_tokens: int) -> float:
        """How long computing so many would take."""
        return num_tokens / self.rate if self.rate else float("inf")
