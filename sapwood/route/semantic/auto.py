"""The guest that resolves names by rules, and what it tells of that."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from aiohttp import web

from sapwood.base.errors import RequestError
from sapwood.route.fleet import Fleet
from sapwood.route.guests import Answered, Guest, Passing
from sapwood.route.inner import Inner, Unanswered
from sapwood.route.semantic.decide import Bounds, Decision, allowed, decide
from sapwood.route.semantic.meanings import Meanings, Served
from sapwood.route.semantic.measures import Expected, Measures, expected
from sapwood.route.semantic.metrics import RuleMetrics
from sapwood.route.semantic.question import Question
from sapwood.route.semantic.signals import Found, asked, is_slow, seen, shown
from sapwood.route.semantic.staying import Staying, conversation_of
from sapwood.route.semantic.table import Auto, Examples, Signal
from sapwood.route.table import Table

_RULE = "x-sapwood-rule"
_COST, _SECONDS = "x-sapwood-max-cost", "x-sapwood-max-seconds"


class Meant:
    """The meanings of the table as it is now: another model has other vectors."""

    def __init__(self, fleet: Fleet, inner: Inner) -> None:
        self._fleet, self._inner = fleet, inner
        self._of: Table | None = None
        self._meanings: Meanings | None = None

    def now(self) -> Meanings | None:
        """None if the table names no model for vectors."""
        table, before = self._fleet.table, self._of
        if table is not before:
            meaning = table.meaning
            if before is None or meaning != before.meaning:
                self._meanings = None if meaning is None else Meanings(Served(self._inner, meaning.model), meaning)
            self._of = table
        return self._meanings

    def warm(self) -> None:
        """Have the vectors of all examples made that are not there, beside whatever else goes on."""
        meanings = self.now()
        if meanings is None:
            return
        signals = [signal for signal in self._fleet.table.signal.values() if isinstance(signal, Examples)]
        wanted = {texts for signal in signals for texts in (signal.like, signal.unlike) if texts}
        meanings.forget_all_but(wanted)
        for texts in wanted:
            with contextlib.suppress(Unanswered):
                meanings.examples(texts)


class Look:
    """Signals of one question, each looked for once."""

    def __init__(self, table: Table, question: Question, meanings: Meanings | None, inner: Inner) -> None:
        self._signals: Mapping[str, Signal] = table.signal
        self._question, self._meanings, self._inner = question, meanings, inner
        self.found: dict[str, Found] = {}

    def slow(self, name: str) -> bool:
        return is_slow(self._signals[name]) and name not in self.found

    async def see(self, name: str) -> Found:
        if name not in self.found:
            signal = self._signals[name]
            self.found[name] = (
                await asked(signal, self._question, self._meanings, self._inner)
                if is_slow(signal)
                else seen(signal, self._question)
            )
        return self.found[name]


class Known:
    """What is known of models, for one question."""

    def __init__(self, fleet: Fleet, question: Question, measures: Measures) -> None:
        self._fleet, self._question, self._measures = fleet, question, measures

    def at_hand(self, model: str) -> bool:
        return any(self._fleet.able(name) for name in self._fleet.names(model))

    def expected(self, model: str) -> Expected:
        names = self._fleet.names(model)
        first = next((name for name in names if self._fleet.able(name)), names[0])
        return expected(model, self._question, self._fleet.table.about, self._measures, first)


class Rules(Guest):
    """Resolves names by the rules of the table that is read now."""

    def __init__(self, fleet: Fleet, inner: Inner, meant: Meant, metrics: RuleMetrics) -> None:
        self._fleet, self._inner, self._meant, self._metrics = fleet, inner, meant, metrics
        self.measures, self._staying = Measures(), Staying()

    async def arrives(self, passing: Passing) -> web.Response | None:
        name = (passing.ask.model or "").removesuffix(":latest")  # as Ollama's clients have it
        auto = self._fleet.table.auto.get(name)
        if auto is None:
            return None
        began = perf_counter()
        question = Question(passing.ask.document)
        look, known = self._looks(question)
        within = bounds(passing.headers)
        decision = await decide(auto, look.see, known, within, look.slow)
        if auto.keep_seconds:
            conversation = conversation_of(name, passing.ask, question, passing.tenant)
            decision = self._staying.settled(decision, auto, conversation, lambda rule: allowed(rule, within, known)[0])
        self._count(name, decision, look)
        self._metrics.seconds.observe(perf_counter() - began)
        told = f"{decision.rule}; {decision.score:.2f}; {decision.note or shown(look.found) or 'no signal'}"
        if decision.refuse is not None:
            raise RequestError(f"{decision.refuse} (rule {decision.rule!r})", param="model", code="refused_by_rule")
        passing.models = decision.models
        passing.told[_RULE] = told
        return None

    def answered(self, passing: Passing, how: Answered) -> None:
        if how.status == 200 and how.model is not None and self._fleet.table.auto:
            self.measures.note(how.model, how.first, how.seconds)

    async def explain(self, request: web.Request, passing: Passing) -> web.Response:
        """All signals of a request and what would become of it, without asking any model to answer."""
        body = passing.ask.document
        name = str(body.get("model") or "auto")
        auto = self._fleet.table.auto.get(name)
        if auto is None:
            names = ", ".join(self._fleet.table.auto) or "none"
            raise RequestError(f"No rules resolve {name!r}; they do: {names}.", param="model", status=404)
        question = Question(body)
        look, known = self._looks(question)
        decision = await decide(auto, look.see, known, bounds(request.headers), look.slow)
        return web.json_response(await self._told(name, auto, decision, look, known, question))

    def _looks(self, question: Question) -> tuple[Look, Known]:
        table = self._fleet.table
        return Look(table, question, self._meant.now(), self._inner), Known(self._fleet, question, self.measures)

    def _count(self, name: str, decision: Decision, look: Look) -> None:
        model = "none" if decision.refuse is not None else decision.models[0]
        self._metrics.ruled.labels(name, decision.rule, model).inc()
        for signal, found in look.found.items():
            if found.holds is None:
                self._metrics.unknown.labels(signal).inc()

    async def _told(
        self, name: str, auto: Auto, decision: Decision, look: Look, known: Known, question: Question
    ) -> dict[str, Any]:
        looked = dict(look.found)
        for signal in self._fleet.table.signal:
            await look.see(signal)
        models = dict.fromkeys(model for to in (auto.to, *(rule.to for rule in auto.rule)) for model in to)
        return {
            "name": name,
            "rule": decision.rule,
            "score": decision.score,
            "models": list(decision.models),
            "refuse": decision.refuse,
            "note": decision.note,
            "passed": decision.passed,
            "signals": {
                signal: {"holds": one.holds, "score": one.score, "why": one.why, "looked_at": signal in looked}
                for signal, one in look.found.items()
            },
            "expected": {
                model: known.expected(model)._asdict() | {"at_hand": known.at_hand(model)} for model in models
            },
            "tokens": {"count": question.tokens, "how": "estimated"},
        }


def bounds(headers: Mapping[str, str]) -> Bounds:
    """What a client may be charged and how long it waits, by its headers. Raises RequestError (400)."""
    return Bounds(_number(headers, _COST), _number(headers, _SECONDS))


def _number(headers: Mapping[str, str], name: str) -> float | None:
    given = headers.get(name)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise RequestError(f"{name} is {given!r}; send a number above 0.", param=name)
    return value
