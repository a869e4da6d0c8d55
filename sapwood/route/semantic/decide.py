"""What follows from the signals by the rules of a name.

A rule's score is the least of those that it wants all of and of the greatest of those that it wants one of (Zadeh's fuzzy sets, 1965). A
signal that nobody can tell makes a rule that depends on it fail: the next one is looked at.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sapwood.route.semantic.measures import Expected
from sapwood.route.semantic.signals import Found
from sapwood.route.semantic.table import Auto, Rule

See = Callable[[str], Awaitable[Found]]
"""Looks for a signal, once for each question."""

OTHERWISE = "otherwise"
"""What is told in place of a rule's name where none holds."""


class Models(Protocol):
    """What is known of models."""

    def at_hand(self, model: str) -> bool: ...

    def expected(self, model: str) -> Expected: ...


class Bounds(NamedTuple):
    """What a request may take: money, seconds."""

    cost: float | None = None
    seconds: float | None = None


@dataclass
class Decision:
    """What a question is to be answered by.

    Attributes:
        rule: The name of the one that won.
        score: Of it, from 0 to its weight.
        models: In the order in which they are tried.
        refuse: What the client is told instead.
        passed: Rules that held or nearly did, and why they did not win.
        note: What else is to be told.
    """

    rule: str
    score: float
    models: tuple[str, ...]
    refuse: str | None = None
    passed: dict[str, str] = field(default_factory=dict)
    note: str = ""


class _Held(NamedTuple):
    rule: Rule
    score: float
    models: tuple[str, ...]


async def decide(auto: Auto, see: See, models: Models, bounds: Bounds, slow: Callable[[str], bool]) -> Decision:
    """The first rule that holds, or the best; `slow` says for which signals a model has to be asked, so that they come last."""
    passed: dict[str, str] = {}
    held: list[_Held] = []
    for rule in auto.rule:
        score, why = await _score(rule, see, slow)
        if score is None:
            passed[rule.name] = why
            continue
        chosen, why = allowed(rule, bounds, models)
        if not chosen and rule.refuse is None:
            passed[rule.name] = why
            continue
        held.append(_Held(rule, score * rule.weight, chosen))
        if auto.pick == "first":
            break
    if held:
        best = max(held, key=lambda one: one.score)
        passed |= {one.rule.name: f"score {one.score:.2f}" for one in held if one is not best}
        return Decision(best.rule.name, best.score, best.models, best.rule.refuse, passed)
    within, why = _within(auto.to, "order", bounds, models)
    return Decision(OTHERWISE, 0.0, within or auto.to, None, passed, "" if within else why)


def allowed(rule: Rule, bounds: Bounds, models: Models) -> tuple[tuple[str, ...], str]:
    """The models of a rule that may be asked, and why none may."""
    return _within(rule.to, rule.prefer, _tighter(bounds, rule), models)


async def _score(rule: Rule, see: See, slow: Callable[[str], bool]) -> tuple[float | None, str]:
    """The score of a rule, None with the reason if it does not hold."""
    scores, unknown = [1.0], ""
    for name in sorted(rule.none, key=slow):
        found = await see(name)
        if found.holds:
            return None, f"{name} is there"
        unknown = unknown or (f"{name} is not known" if found.holds is None else "")
    for name in sorted(rule.all, key=slow):
        found = await see(name)
        if found.holds is False:
            return None, f"{name} is not there"
        unknown = unknown or (f"{name} is not known" if found.holds is None else "")
        scores.append(found.score)
    if rule.any:
        best, why = await _any(rule.any, see, slow)
        if best is None:
            return None, why
        scores.append(best)
    return (None, unknown) if unknown else (min(scores), "")


async def _any(names: Sequence[str], see: See, slow: Callable[[str], bool]) -> tuple[float | None, str]:
    """The greatest score of those that hold; once one does, no model is asked about others."""
    best, unknown = None, ""
    for name in sorted(names, key=slow):
        if best is not None and slow(name):
            break
        found = await see(name)
        if found.holds:
            best = max(found.score, best or 0.0)
        elif found.holds is None:
            unknown = f"{name} is not known"
    return best, unknown or "none of any is there"


def _tighter(bounds: Bounds, rule: Rule) -> Bounds:
    def least(one: float | None, two: float | None) -> float | None:
        return min((value for value in (one, two) if value is not None), default=None)

    return Bounds(least(bounds.cost, rule.at_most_cost), least(bounds.seconds, rule.at_most_seconds))


def _within(names: Sequence[str], prefer: str, bounds: Bounds, models: Models) -> tuple[tuple[str, ...], str]:
    """Those at hand that take no more than they may, in the order in which they are preferred; and why there is none. How long a model
    takes that has never been seen nobody knows: it may be tried."""
    there = [name for name in names if models.at_hand(name)]
    if not there:
        return (), "no server has its models now"
    known = {name: models.expected(name) for name in there}
    cheap = [name for name in there if bounds.cost is None or known[name].cost <= bounds.cost]
    if not cheap:
        return (), "its models cost too much"
    quick = [name for name in cheap if bounds.seconds is None or (known[name].seconds or 0.0) <= bounds.seconds]
    if prefer == "cost":
        quick.sort(key=lambda name: known[name].cost)
    elif prefer == "seconds":
        quick.sort(key=lambda name: known[name].seconds or 0.0)
    return tuple(quick), "" if quick else "its models take too long"
