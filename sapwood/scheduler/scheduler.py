"""The scheduler: planning steps and applying what they yield, over one roster of requests.

It knows counts, slots and, once steps land, token values. It knows no tensors, no clock, and none of its stakes by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.base.errors import ConfigError
from sapwood.base.news import Landing, News
from sapwood.base.plan import Ints, LatePart, Outcome, Plan
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.scheduler.commit import Commit
from sapwood.scheduler.fair import Fair
from sapwood.scheduler.lanes import Lane, lanes
from sapwood.scheduler.planner import Planner
from sapwood.scheduler.roster import NO_SLOTS, Roster
from sapwood.scheduler.waiting import Peek, Waiting


def _nothing_cached(request: Request) -> int:
    return 0


def _line(policy: str) -> Waiting:
    match policy:
        case "fair":
            return Fair()
        case "fcfs" | "priority" | "lpm":
            return Waiting(policy)
        case _:
            raise ConfigError(f"--schedule-policy: unknown policy {policy!r}; choose fcfs, priority, lpm or fair.")


class Scheduler:
    """Plans steps over what its `stakes` allow and takes in what they yield.

    `max_num_batched_tokens` bounds a step, `chunked_prefill_size` the prompt tokens of a step that also decodes. `peek`
    tells the longest-prefix-first policy how many of a waiting request's tokens are cached.
    """

    def __init__(
        self,
        slots: Slots,
        stakes: Sequence[Stake],
        *,
        max_num_batched_tokens: int,
        chunked_prefill_size: int | None = None,
        policy: str = "fcfs",
        peek: Peek = _nothing_cached,
    ) -> None:
        assert max_num_batched_tokens >= len(slots.owner)
        self.slots = slots
        self._roster = Roster(slots, _line(policy), stakes)
        self._planner = Planner(
            self._roster,
            max_tokens=max_num_batched_tokens,
            max_mixed=chunked_prefill_size or max_num_batched_tokens,
            peek=peek,
        )
        self._commit = Commit(self._roster)

    @property
    def num_running(self) -> int:
        return self.slots.num_running

    @property
    def num_waiting(self) -> int:
        """Requests without a slot, those among them that may not be started yet."""
        return len(self._roster.waiting) + len(self._roster.aside)

    @property
    def num_preempted(self) -> int:
        return self._roster.num_preempted

    def running(self) -> list[Request]:
        return self.slots.running()

    def lanes(self, most: int) -> list[Lane]:
        """How far requests have come, at most so many: those who run, then those who wait."""
        return lanes(self._roster, most)

    def add(self, request: Request) -> None:
        self._roster.add(request)

    def usher(self) -> list[News]:
        """To be called before each plan: requests that have become ready may start; news of those that never will."""
        return self._roster.usher()

    def wait(self, seconds: float) -> None:
        """Wait until a request may have become ready: there is nothing else to do."""
        for stake in {stake: None for request in self._roster.aside for stake in request.stakes}:
            stake.wait(seconds)

    @property
    def halted(self) -> bool:
        """Whether a stake has all stand still."""
        return any(stake.halts for stake in self._roster.stakes)

    def plan(self) -> Plan | None:
        """The next step, or None when nothing can be computed until a result comes, a request arrives or all may go on."""
        return None if self.halted else self._planner.plan()

    def fill(self, plan: Plan, proposed: Ints = NO_SLOTS) -> tuple[LatePart, ...]:
        """The late parts of a plan whose forward has been started; if it is late, all steps before it have landed. `proposed` are the drafts
        that the device tells."""
        alive = self.slots.owner[plan.slots_R] == plan.owners_R
        if len(proposed):
            for stake in self._roster.stakes:
                stake.hear(plan, alive, proposed)
        filled = (stake.fill(plan, alive) for stake in self._roster.filling)
        return tuple(part for part in filled if part is not None)

    def commit(self, plan: Plan, outcome: Outcome) -> Landing:
        """Take in a step's tokens; the news of its requests."""
        return self._commit(plan, outcome)

    def abort(self, id: int) -> News | None:
        """End a request at once; None when there is no such request (any more)."""
        return News(id, [], finish="abort") if self._roster.abort(id) else None

    def retract(self) -> int:
        """Have all running requests wait again, in their order and with what they have said; how many they were."""
        return self._roster.retract()

    def empty(self) -> None:
        """Have nobody run, and every stake let go of the device's pages."""
        self._roster.retract()
        for stake in self._roster.stakes:
            stake.emptied()

    def fail(self, text: str) -> list[News]:
        """End every request with an error, forgetting all they computed: a step is lost."""
        return [News(id, [], finish="error", error=text) for id in self._roster.clear()]

    def audit(self) -> int:
        """Have every stake check its books against who is running; how many entries were wrong, and are mended."""
        running = self.running()
        return sum(stake.audit(running) for stake in self._roster.stakes)

    def tidy(self) -> bool:
        """While there is nothing else to do, have a stake do a short piece of work; False if none has any."""
        return any(stake.tidy() for stake in self._roster.stakes)

    def close(self) -> None:
        """Nothing is planned any more."""
        for stake in self._roster.stakes:
            stake.close()
