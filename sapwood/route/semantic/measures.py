"""What models cost and how fast they are: by the table, and by what the router has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import NamedTuple

from sapwood.route.semantic.question import Question
from sapwood.route.semantic.table import About

_SHARE = 0.1  # of the mean that the newest answer is
_OLD = 300.0  # seconds after which what was seen says nothing: so that one that was slow gets another chance
_MILLION = 1e6
_UNKNOWN = About()


class Seen(NamedTuple):
    """Means of the last answers, in seconds: until they began, and until they had ended."""

    first: float
    whole: float
    answers: int
    at: float


class Measures:
    """Means of each model's last answers."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, Seen] = {}

    def note(self, model: str, first: float, whole: float) -> None:
        """A model has answered."""
        now, before = self._clock(), self.of(model)
        if before is not None:
            first = before.first + _SHARE * (first - before.first)
            whole = before.whole + _SHARE * (whole - before.whole)
        self._seen[model] = Seen(first, whole, (0 if before is None else before.answers) + 1, now)

    def of(self, model: str) -> Seen | None:
        """What was seen of a model lately."""
        found = self._seen.get(model)
        return found if found is not None and self._clock() - found.at < _OLD else None


class Expected(NamedTuple):
    """Of one request: money, and seconds until the answer is whole; None where nobody knows."""

    cost: float
    seconds: float | None


def expected(
    model: str, question: Question, about: Mapping[str, About], measures: Measures, stands_for: str | None = None
) -> Expected:
    """What a model would take for a question: what was measured, else what the table says, of it or of what its name stands for."""
    stands_for = stands_for or model
    one = about.get(model) or about.get(stands_for, _UNKNOWN)
    answer = question.answer(one.answer)
    cost = (question.tokens * one.input + answer * one.output) / _MILLION
    if (seen := measures.of(stands_for)) is not None:
        return Expected(cost, seen.whole)
    if one.first is None and one.per_second is None:
        return Expected(cost, None)
    return Expected(cost, (one.first or 0.0) + (answer / one.per_second if one.per_second else 0.0))
