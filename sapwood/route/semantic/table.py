"""The parts of a router's table that say which model a question fits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sapwood.base.errors import ConfigError
from sapwood.route.paths import CARRIED

APPLY = "/v1/apply"

_NAME = re.compile(r"[A-Za-z0-9.:/_-][A-Za-z0-9 .:/_-]{0,63}")

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]
Part = Literal["last", "user", "all"]
"""What of a request is looked at: the last thing that the user said, all that the user said, or all of it."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are refused."""


class Words(_Strict, frozen=True, tag="words", tag_field="kind"):
    """At least so many of these words or phrases are there, whatever their case."""

    any: Annotated[tuple[str, ...], Meta(min_length=1)]
    at_least: Annotated[int, Meta(ge=1)] = 1
    of: Part = "last"


class Pattern(_Strict, frozen=True, tag="pattern", tag_field="kind"):
    """At least so many places match one of these regular expressions (Python's)."""

    any: Annotated[tuple[str, ...], Meta(min_length=1)]
    at_least: Annotated[int, Meta(ge=1)] = 1
    of: Part = "last"


class Size(_Strict, frozen=True, tag="size", tag_field="kind"):
    """The text is as long as this; tokens are estimated."""

    at_least: Count = 0
    at_most: Count | None = None
    unit: Literal["tokens", "characters", "messages"] = "tokens"
    of: Part = "all"


class Language(_Strict, frozen=True, tag="language", tag_field="kind"):
    """The text is in one of these languages (ISO 639-1)."""

    any: Annotated[tuple[str, ...], Meta(min_length=1)]
    of: Part = "user"


class Has(_Strict, frozen=True, tag="has", tag_field="kind"):
    """One of these is in the request."""

    any: Annotated[tuple[Literal["tools", "images", "audio", "schema", "system", "stream"], ...], Meta(min_length=1)]


class Reasoning(_Strict, frozen=True, tag="reasoning", tag_field="kind"):
    """It wants thought: its fields say so, or its words do."""

    at_least: Share = 0.5
    of: Part = "last"


class Examples(_Strict, frozen=True, tag="examples", tag_field="kind"):
    """It is as near as this to one of the examples, by the cosine of their vectors; `unlike` are near misses: nearer to one of these,
    it does not hold."""

    like: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2000)]
    unlike: Annotated[tuple[str, ...], Meta(max_length=2000)] = ()
    at_least: Share = 0.5
    of: Part = "last"


class Label(_Strict, frozen=True, tag="label", tag_field="kind"):
    """A classifier gives it one of these labels, with a share of at least so much for them together."""

    model: str
    any: Annotated[tuple[str, ...], Meta(min_length=1)]
    at_least: Share = 0.5
    timeout: Positive = 0.5
    of: Part = "last"


class Personal(_Strict, frozen=True, tag="personal", tag_field="kind"):
    """It has data of a person: numbers of cards and accounts with right check digits, addresses of mail, telephone numbers."""

    any: Annotated[tuple[Literal["mail", "card", "iban", "phone", "ssn", "ip"], ...], Meta(min_length=1)] = (
        "mail",
        "card",
        "iban",
        "phone",
        "ssn",
    )
    of: Part = "all"


class Jailbreak(_Strict, frozen=True, tag="jailbreak", tag_field="kind"):
    """It reads as those do that want a model to forget its instructions; a first sieve, no guard."""

    at_least: Share = 0.5
    of: Part = "user"


Signal = Words | Pattern | Size | Language | Has | Reasoning | Examples | Label | Personal | Jailbreak


class Rule(_Strict, frozen=True):
    """Holds if all of `all`, one of `any` and none of `none` do; one without any of these always does.

    Attributes:
        to: Models, of which the first at hand is asked.
        refuse: What the client is told instead (400).
        prefer: Of several, in order, by what they cost or by how fast they are.
        at_most_cost: Of one request, in the money of `[about]`; dearer models are left out.
        at_most_seconds: Until the answer is whole, as measured; slower models are left out.
        weight: By which the score is multiplied where the best is picked.
    """

    name: str
    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    refuse: str | None = None
    prefer: Literal["order", "cost", "seconds"] = "order"
    at_most_cost: Positive | None = None
    at_most_seconds: Positive | None = None
    weight: Positive = 1.0

    @property
    def signals(self) -> tuple[str, ...]:
        return (*self.all, *self.any, *self.none)


class Auto(_Strict, frozen=True):
    """A name that rules resolve.

    Attributes:
        to: Who is asked where no rule holds.
        pick: The first rule that holds, or the one with the best score.
        keep_seconds: For how long a conversation stays with its model, unless a rule before its own holds; 0: not at all.
        rule: In order.
    """

    to: Annotated[tuple[str, ...], Meta(min_length=1)]
    pick: Literal["first", "best"] = "first"
    keep_seconds: Annotated[float, Meta(ge=0)] = 0.0
    rule: tuple[Rule, ...] = ()


class About(_Strict, frozen=True):
    """What is known of a model.

    Attributes:
        input: Money for a million tokens of prompts, `output` of answers.
        first: Seconds until it begins to answer, and `per_second` tokens then, until the router has measured it.
        answer: Tokens of a usual answer, where a request sets no bound.
    """

    input: Annotated[float, Meta(ge=0)] = 0.0
    output: Annotated[float, Meta(ge=0)] = 0.0
    first: Positive | None = None
    per_second: Positive | None = None
    answer: Annotated[int, Meta(ge=1)] = 300


class Meaning(_Strict, frozen=True):
    """Who turns texts into vectors (/v1/embeddings).

    Attributes:
        timeout: Seconds that a request waits for a vector.
    """

    model: str
    timeout: Positive = 0.25


class Answers(_Strict, frozen=True):
    """A cache of answers by meaning.

    Attributes:
        models: Names that requests must have asked for.
        at_least: The cosine of the last questions; 1 wants them to be the same text.
        most: Answers that are kept, of all tenants together.
        most_bytes: Of these.
        seconds: For how long.
        any_temperature: Also those of requests that want to be surprised.
    """

    models: Annotated[tuple[str, ...], Meta(min_length=1)]
    at_least: Annotated[float, Meta(ge=0.5, le=1)] = 0.97
    most: Annotated[int, Meta(ge=1)] = 1000
    most_bytes: Annotated[int, Meta(ge=1)] = 32 << 20
    seconds: Positive = 3600.0
    any_temperature: bool = False


class ApplyBy(_Strict, frozen=True):
    """Files of at most `up_to` tokens, estimated, are edited by `model`; of any size where it is not given."""

    model: str
    up_to: Annotated[int, Meta(ge=1)] | None = None


def check_standing(paths: Mapping[str, str], apply: Sequence[ApplyBy], where: str) -> None:
    """Raises ConfigError for what answers no path."""
    for path in paths:
        if path not in CARRIED:
            raise ConfigError(f"{where}: [paths] has {path!r}, which is not carried; take one of {', '.join(CARRIED)}.")
    if APPLY in paths and apply:
        raise ConfigError(f"{where}: give {APPLY} either in [paths] or by [[apply]].")
    sizes = [one.up_to for one in apply]
    growing = [size for size in sizes if size is not None]
    if apply and (sizes != [*growing, None] or growing != sorted(set(growing))):
        raise ConfigError(f"{where}: [[apply]] wants up_to growing from one to the next, and the last without it.")


def check_rules(
    auto: Mapping[str, Auto],
    signals: Mapping[str, Signal],
    meaning: Meaning | None,
    answers: Answers | None,
    aliases: Mapping[str, object],
    where: str,
) -> None:
    """Raises ConfigError for rules that cannot be followed, naming them."""
    called = [*signals, *auto, *(rule.name for one in auto.values() for rule in one.rule)]
    if odd := next((name for name in called if not _NAME.fullmatch(name)), None):
        raise ConfigError(
            f"{where}: {odd!r} is no name for a header: letters, digits, spaces and .:/_- may be in it, 64 at most."
        )
    for name, signal in signals.items():
        if isinstance(signal, Pattern):
            _check_patterns(name, signal, where)
        if isinstance(signal, Examples) and meaning is None:
            raise ConfigError(f"{where}: [signal.{name}] compares meanings: name a model for vectors in [meaning].")
        if isinstance(signal, Size) and signal.at_most is not None and signal.at_most < signal.at_least:
            raise ConfigError(f"{where}: [signal.{name}] has at_most below at_least.")
    for name, one in auto.items():
        if name in aliases:
            raise ConfigError(f"{where}: {name!r} is in [model] and in [auto]; give one of them another name.")
        for rule in one.rule:
            _check_rule(f"{where}: rule {rule.name!r} of [auto.{name}]", rule, signals)
        _check_names(f"{where}: [auto.{name}]", [one.to, *(rule.to for rule in one.rule)], one.rule, auto)
    if answers is not None and answers.at_least < 1 and meaning is None:
        raise ConfigError(
            f"{where}: [answers] compares meanings: name a model for vectors in [meaning], or at_least = 1."
        )


def _check_patterns(name: str, signal: Pattern, where: str) -> None:
    for pattern in signal.any:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{where}: [signal.{name}] has {pattern!r}, no regular expression: {error}.") from error


def _check_rule(where: str, rule: Rule, signals: Mapping[str, Signal]) -> None:
    for signal in rule.signals:
        if signal not in signals:
            raise ConfigError(f"{where} wants the signal {signal!r}; there are: {', '.join(signals) or 'none'}.")
    if (rule.refuse is None) == (not rule.to):
        raise ConfigError(f"{where} wants either `to` or `refuse`.")


def _check_names(where: str, names: Sequence[Sequence[str]], rules: Sequence[Rule], auto: Mapping[str, Auto]) -> None:
    if looped := {model for some in names for model in some} & set(auto):
        raise ConfigError(f"{where} leads to {looped.pop()!r}, which rules resolve; name a model.")
    called = [rule.name for rule in rules]
    if doubled := {name for name in called if called.count(name) > 1}:
        raise ConfigError(f"{where} has two rules called {doubled.pop()!r}.")
