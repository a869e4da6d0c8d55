"""How good a table's rules are: by questions of which somebody has said which model is to answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, quantiles
from typing import Annotated, Any

import aiohttp
import msgspec
from msgspec import Meta

from sapwood.base.errors import ConfigError
from sapwood.config.options import ServerConfig
from sapwood.route.app import Router
from sapwood.route.inner import Inner
from sapwood.route.semantic.auto import Look, Meant
from sapwood.route.semantic.decide import Bounds, decide
from sapwood.route.semantic.measures import Expected, Measures, expected
from sapwood.route.semantic.question import Question
from sapwood.route.semantic.table import Auto, Examples
from sapwood.route.table import Table

REFUSE = "refuse"
_PATIENT = 30.0  # seconds for a vector


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file; other fields are passed over.

    Attributes:
        question: What the user says, or `body` the whole request.
        want: The model that is to answer, or `refuse`.
        enough: Those that are good enough; the wanted one alone if it is not given.
        tokens: That the answer has.
        kind: What results are grouped by.
    """

    want: str
    question: str | None = None
    body: dict[str, Any] | None = None
    enough: tuple[str, ...] = ()
    tokens: Annotated[int, Meta(ge=1)] | None = None
    kind: str = "all"

    def asked(self) -> dict[str, Any]:
        body = self.body or {"messages": [{"role": "user", "content": self.question or ""}]}
        return body if self.tokens is None else body | {"max_tokens": self.tokens}

    def is_enough(self, model: str) -> bool:
        return model == self.want or model in self.enough


@dataclass
class Result:
    """One way to choose a model, over all questions.

    Attributes:
        right: The wanted one was chosen, or it was refused as wanted.
        enough: One that is good enough was.
        cost: Of all questions.
        seconds: Until an answer is whole, of those of which that is known.
    """

    name: str
    right: int = 0
    enough: int = 0
    cost: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def note(self, labelled: Labelled, model: str, takes: Expected | None) -> None:
        self.right += model == labelled.want
        self.enough += labelled.is_enough(model)
        if takes is not None:
            self.cost += takes.cost
            if takes.seconds is not None:
                self.seconds.append(takes.seconds)


class Mistake(msgspec.Struct, frozen=True):
    question: str
    kind: str
    want: str
    chose: str
    rule: str
    score: float


@dataclass
class Report:
    """All that is found out.

    Attributes:
        ways: The rules, and each model for everything.
        kinds: Of each kind, how many questions there are, were right and were good enough.
        took: Milliseconds that deciding took, of each question.
        unknown: Signals that nobody could tell, and how often.
    """

    ways: list[Result]
    questions: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)

    def told(self) -> dict[str, Any]:
        """As JSON tells it."""
        spread = quantiles(self.took, n=20) if len(self.took) > 1 else self.took * 19
        return {
            "questions": self.questions,
            "ways": [
                {
                    "name": one.name,
                    "right": one.right / self.questions,
                    "enough": one.enough / self.questions,
                    "cost": one.cost,
                    "seconds": fmean(one.seconds) if one.seconds else None,
                }
                for one in self.ways
            ],
            "kinds": {
                kind: {"questions": count, "right": right, "enough": enough}
                for kind, (count, right, enough) in self.kinds.items()
            },
            "deciding_ms": {"p50": spread[9], "p95": spread[18]},
            "unknown": dict(self.unknown),
            "mistakes": [msgspec.to_builtins(one) for one in self.mistakes],
        }


def read(path: Path) -> list[Labelled]:
    """Raises ConfigError for a line that is none, with its number."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = msgspec.json.decode(line, type=Labelled)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number}: {error}.") from error
        if (one.question is None) == (one.body is None):
            raise ConfigError(f"{path}, line {number}: give either question or body.")
        found.append(one)
    if not found:
        raise ConfigError(f"{path} has no questions.")
    return found


async def evaluate(table: Table, name: str, questions: Sequence[Labelled]) -> Report:
    """Decide each question by the rules of a name as if all models were at hand; vectors and labels are had from the table's servers.
    Raises ConfigError if no rules resolve the name."""
    auto = table.auto.get(name)
    if auto is None:
        raise ConfigError(f"No rules resolve {name!r}; they do: {', '.join(table.auto) or 'none'}.")
    if table.meaning is not None:  # the rules are scored, not how busy this machine is
        table = msgspec.structs.replace(table, meaning=msgspec.structs.replace(table.meaning, timeout=_PATIENT))
    router = Router(table, ServerConfig())
    async with router.serving(), aiohttp.ClientSession(auto_decompress=False) as session:
        inner = Inner(router.fleet, session, lambda: None)
        meant = Meant(router.fleet, inner)
        meanings = meant.now()
        for signal in table.signal.values():
            if meanings is not None and isinstance(signal, Examples):
                await meanings.learnt(signal.like)
                if signal.unlike:
                    await meanings.learnt(signal.unlike)
        return await _decided(table, auto, questions, lambda one: Look(table, one, meanings, inner))


async def _decided(
    table: Table, auto: Auto, questions: Sequence[Labelled], look_at: Callable[[Question], Look]
) -> Report:
    models = dict.fromkeys(model for to in (auto.to, *(rule.to for rule in auto.rule)) for model in to)
    rules, always = Result("rules"), {model: Result(f"always {model}") for model in models}
    report = Report([rules, *always.values()], len(questions))
    for labelled in questions:
        began = time.perf_counter()
        question = Question(labelled.asked())
        look, known = look_at(question), _AllAtHand(table, question)
        decision = await decide(auto, look.see, known, Bounds(), look.slow)
        report.took.append(1e3 * (time.perf_counter() - began))
        report.unknown.update(signal for signal, found in look.found.items() if found.holds is None)
        chose = REFUSE if decision.refuse is not None else decision.models[0]
        rules.note(labelled, chose, None if chose == REFUSE else known.expected(chose))
        for model, result in always.items():
            result.note(labelled, model, known.expected(model))
        count = report.kinds.setdefault(labelled.kind, [0, 0, 0])
        for at, one in enumerate((True, chose == labelled.want, labelled.is_enough(chose))):
            count[at] += one
        if chose != labelled.want:
            text = question.last[:120]
            report.mistakes.append(
                Mistake(text, labelled.kind, labelled.want, chose, decision.rule, round(decision.score, 3))
            )
    return report


class _AllAtHand:
    """Models as the table has them, of which none is missing."""

    def __init__(self, table: Table, question: Question) -> None:
        self._table, self._question, self._measures = table, question, Measures()

    def at_hand(self, model: str) -> bool:
        return True

    def expected(self, model: str) -> Expected:
        return expected(model, self._question, self._table.about, self._measures)


def written(report: Report, told: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{report.questions} questions", "", f"{'':24}{'right':>8}{'enough':>8}{'cost':>12}{'seconds':>9}"]
    for one in told["ways"]:
        seconds = "-" if one["seconds"] is None else f"{one['seconds']:.1f}"
        lines.append(f"{one['name']:24}{one['right']:8.1%}{one['enough']:8.1%}{one['cost']:12.5f}{seconds:>9}")
    lines += ["", f"{'kind':24}{'count':>8}{'right':>8}{'enough':>8}"]
    for kind, one in told["kinds"].items():
        lines.append(f"{kind:24}{one['questions']:8}{one['right']:8}{one['enough']:8}")
    deciding = told["deciding_ms"]
    lines += ["", f"deciding took {deciding['p50']:.2f} ms at the median, {deciding['p95']:.2f} ms at p95"]
    lines += [f"nobody could tell {signal} for {count} questions" for signal, count in report.unknown.items()]
    return "\n".join(lines)
