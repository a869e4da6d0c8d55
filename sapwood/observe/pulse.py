"""Whether the engine still beats, judged from reports that bear no time."""

from __future__ import annotations


class Pulse:
    """Compares the engine's latest report with the one of the last look.

    A new report is only known to have come after the previous look, so that look is what its age counts from. Looks
    that are far apart therefore answer 'cannot tell' rather than 'alive'.
    """

    def __init__(self, *, limit: float, now: float) -> None:
        """`limit`: seconds after which a report is no sign of life any more; `now`: monotonic seconds."""
        self.limit = limit
        self._report: object = None
        self._looked = now
        self._since = now

    def beats(self, report: object, now: float) -> bool:
        """True when `report` is surely younger than the limit."""
        if report is not self._report:
            self._report, self._since = report, self._looked
        self._looked = now
        return now - self._since <= self.limit
