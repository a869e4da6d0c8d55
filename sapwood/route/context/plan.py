"""Where a history is cut, so that the next turn is cut in the same places.

A client sends its whole history each time, a little longer than before, and knows nothing of cuts. Were it cut anew as its length
suggests, every turn would begin differently, and nothing of it would be found in a cache. So the plan of a history is the plan of the one
before, unless that has become too long: it is found by going through all histories that the client must have sent, from the first, and
moving the cuts only where one of them does not fit, then far enough that some turns fit behind it. All that follows from is the
history itself, so that any router says the same, and nothing has to be kept.

    0        head            cut                 mark               end
    | system, | left out, or  | tools' outputs    | as it was, but    |
    | 1st user| summed up     | shortened         | for what is twice |
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from sapwood.route.context import shapes
from sapwood.route.context.shapes import Message
from sapwood.route.context.table import Context


class Plan(NamedTuple):
    """Indices of messages, as above. `cuts` are all that `cut` has been, for summaries go on from the one before. Until one of its
    histories was too long nothing is done at all (`idle`)."""

    head: int
    cut: int
    mark: int
    cuts: tuple[int, ...] = ()
    idle: bool = True


class Twice(NamedTuple):
    """An output in message `at` that is that of an earlier message, and the tokens that are saved if it is not repeated."""

    at: int
    earlier: int
    saved: int


@dataclass(frozen=True)
class Sizes:
    """Tokens of each message.

    Attributes:
        base: What comes with every request, the tools and the system prompt beside messages.
        whole: As it is.
        short: With outputs of tools shortened.
        twice: Outputs that are there already, in the order of messages.
        note: What stands for messages that are left out.
    """

    base: int
    whole: Sequence[int]
    short: Sequence[int]
    twice: Sequence[Twice]
    note: int


def planned(messages: Sequence[Message], sizes: Sizes, context: Context) -> Plan:
    """The cuts of a history."""
    head = head_of(messages)
    marks = marks_of(messages, head)
    planner = _Planner(sizes, context, head, marks)
    for end in range(head + 1, len(messages) + 1):
        asked = end == len(messages) or messages[end].get("role") == "assistant"
        if asked:
            planner.fit(end)
    return planner.plan


def head_of(messages: Sequence[Message]) -> int:
    """How many messages stay at the beginning: the system's, and the first of the user, which says what all is about."""
    at = 0
    while at < len(messages) and shapes.is_opening(messages[at]):
        at += 1
    if at < len(messages) and messages[at].get("role") == "user" and shapes.starts(messages[at]):
        at += 1
    return at


def marks_of(messages: Sequence[Message], head: int) -> list[int]:
    """Where may be cut: before messages that need none before them."""
    called: dict[str, int] = {}
    torn = [0] * (len(messages) + 1)  # +1 where a call begins that is answered later, -1 behind its answer
    for at, message in enumerate(messages):
        called |= dict.fromkeys((call.id for call in shapes.calls(message)), at)
        for result in shapes.results(message):
            if (start := called.get(result.id)) is not None:
                torn[start + 1] += 1
                torn[at + 1] -= 1
    open_at = list(accumulate(torn))
    return [at for at in range(head + 1, len(messages)) if not open_at[at] and shapes.starts(messages[at])]


class _Planner:
    """Goes through the histories in the order in which they were sent."""

    def __init__(self, sizes: Sizes, context: Context, head: int, marks: Sequence[int]) -> None:
        self._sizes, self._context, self._marks = sizes, context, marks
        self._whole = [0, *accumulate(sizes.whole)]
        self._short = [0, *accumulate(sizes.short)]
        self._places = [one.at for one in sizes.twice]
        self._shortens = "tool_outputs" in context.steps
        self.plan = Plan(head, head, head)

    def fit(self, end: int) -> None:
        """The history of the first `end` messages was sent: move the cuts if it is too long."""
        if self._size(self.plan, end) <= self._context.budget:
            return
        want = int(self._context.budget * self._context.target)
        last = bisect_left(self._marks, end - self._context.keep_last + 1)
        now = self.plan = self.plan._replace(idle=False)
        marks = self._marks[bisect_left(self._marks, now.mark + 1) : last]
        if self._shortens and marks and self._size(now, end) > want:
            self._move(self._least([now._replace(mark=mark) for mark in marks], end, want), end, want)
        if self._context.cuts and self._size(self.plan, end) > want:
            self._cut(end, want, last)

    def _cut(self, end: int, want: int, last: int) -> None:
        now = self.plan
        cuts = self._marks[bisect_left(self._marks, now.cut + 1) : last]
        if cuts:
            plans = [now._replace(cut=cut, mark=max(cut, now.mark), cuts=(*now.cuts, cut)) for cut in cuts]
            self._move(self._least(plans, end, want), end, want)

    def _move(self, plan: Plan, end: int, want: int) -> None:
        """Take another plan, unless it gains little and is too long all the same: what never fits is not to begin anew at every turn."""
        size, budget = self._size(plan, end), self._context.budget
        if size <= budget or self._size(self.plan, end) - size >= (budget - want) / 2:
            self.plan = plan

    def _least(self, plans: Sequence[Plan], end: int, want: int) -> Plan:
        """The first that is short enough, each being shorter than the one before; the last if none is."""
        at = bisect_left(plans, -want, key=lambda plan: -self._size(plan, end))
        return plans[min(at, len(plans) - 1)]

    def _size(self, plan: Plan, end: int) -> int:
        head, cut, mark = plan.head, plan.cut, plan.mark
        old = self._short if self._shortens else self._whole
        size = self._sizes.base + self._whole[head] + self._whole[end] - self._whole[mark] + old[mark] - old[cut]
        if cut > head:
            size += self._sizes.note
        if not plan.idle:
            first, last = bisect_left(self._places, mark), bisect_left(self._places, end)
            size -= sum(one.saved for one in self._sizes.twice[first:last] if one.earlier >= mark)
        return size
