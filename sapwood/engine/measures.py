"""What the loop measures of itself. It is counted into plain numbers, which leave with the stats; nothing is decided by it."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from sapwood.base.histogram import Histogram
from sapwood.base.plan import Admissions, Plan
from sapwood.base.request import Request

_STEP_SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
)
_HOST_SECONDS = (0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_STEP_TOKENS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
_KINDS = ("decode", "mixed", "prefill")
_MOST_RECENT = 1024  # steps that are taken in together, so that one costs no more than noting it


class Measures:
    """Of steps, by kind: steady rows only, none of them, or both. A step's time is what it adds to that of those before it; the
    host's is what planning and committing took of it.

    Attributes:
        seconds: Planning and committing (`host_seconds`), and waiting for the device (`wait_seconds`), since the start.
    """

    def __init__(self) -> None:
        self.seconds = {"host_seconds": 0.0, "wait_seconds": 0.0}
        self._steps = {kind: Histogram.over(_STEP_SECONDS) for kind in _KINDS}
        self._tokens = {kind: Histogram.over(_STEP_TOKENS) for kind in _KINDS}
        self._host = Histogram.over(_HOST_SECONDS)
        self._recent: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in _KINDS}
        self._planning = 0.0  # seconds since a step was landed last
        self._landed = 0.0

    def planned(self, plan: Plan | None, seconds: float, tenants: Sequence[Request | None]) -> None:
        """Planning took so long. `tenants` are the requests by slot: those that got theirs have waited until now."""
        self._planning += seconds
        self.seconds["host_seconds"] += seconds
        if plan is None or plan.num_rows == plan.num_steady:
            return
        for part in plan.parts:
            if isinstance(part, Admissions):
                now = monotonic()
                for admit in part.admits:
                    request = tenants[admit.slot]
                    if request is not None and request.waited < 0:
                        request.waited = now - request.arrived

    def landed(self, plan: Plan, *, launched: float, waited_since: float, read: float, done: float) -> None:
        """A step's times: when it was launched, the wait for it began, its outcome was read, and was taken in."""
        self.seconds["host_seconds"] += done - read
        self.seconds["wait_seconds"] += read - waited_since
        rows, steady = plan.num_rows, plan.num_steady
        kind = "decode" if steady == rows else "mixed" if steady else "prefill"
        num_tokens = rows if steady == rows and not plan.drafted else plan.num_tokens
        since = self._landed if self._landed > launched else launched
        recent = self._recent[kind]
        recent.append((read - since, self._planning + done - read, num_tokens))
        self._planning, self._landed = 0.0, read
        if len(recent) >= _MOST_RECENT:
            self._take_in()

    def _take_in(self) -> None:
        for kind, recent in self._recent.items():
            if recent:
                seconds, hosts, tokens = zip(*recent, strict=True)
                self._steps[kind].add_all(seconds)
                self._tokens[kind].add_all(tokens)
                self._host.add_all(hosts)
                recent.clear()

    def histograms(self) -> dict[str, dict[str, Histogram]]:
        """By name and kind of step, "" for any."""
        self._take_in()
        by_kind = {"step_seconds": self._steps, "step_tokens": self._tokens}
        told = {name: {kind: one.copy() for kind, one in kinds.items()} for name, kinds in by_kind.items()}
        return told | {"step_host_seconds": {"": self._host.copy()}}
