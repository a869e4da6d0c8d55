"""Finished values checked against their whole schema, in a bounded number of steps.

`format` is an annotation here, as the specification has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec

from sapwood.base.errors import GrammarError
from sapwood.grammar.schema.document import REFERENCES, Document, Keywords, Schema, identity, kinds, types_of
from sapwood.grammar.schema.pattern import Pattern, pattern_of

STEPS = 60_000  # a tenth of a second or two, enough for some 30,000 characters
_MOST_ERRORS = 8
_MOST_DEPTH = 200


class Finding(msgspec.Struct, frozen=True):
    """What came of a check. `errors` are the first few, each behind the place in the value."""

    valid: bool
    errors: list[str] = []


class TooMuch(Exception):
    """The budget is spent."""


@dataclass(slots=True)
class _Seen:
    """Which parts of a value its schema has said something about; `unevaluated...` means the others."""

    names: set[str] = field(default_factory=set)
    places: set[int] = field(default_factory=set)

    def add(self, other: _Seen) -> None:
        self.names |= other.names
        self.places |= other.places


class SchemaCheck:
    """A schema to check values with. Raises GrammarError for a schema that is none, or says what is not known here."""

    def __init__(self, schema: Schema | Document, *, steps: int = STEPS) -> None:
        self.document = schema if isinstance(schema, Document) else Document(schema)
        self._steps = steps
        self._patterns: dict[str, Pattern] = {}

    def __call__(self, text: str) -> Finding:
        """Check a text, which has to be JSON as a whole."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return Finding(False, ["$: the text is not complete JSON"])
        return self.value(value)

    def value(self, value: Any) -> Finding:
        """Check a JSON value."""
        run = _Run(self.document, self._pattern, self._steps)
        try:
            run.check(self.document.root, value, "$")
        except (TooMuch, RecursionError):
            return Finding(False, ["$: the check takes too many steps; it was not finished"])
        return Finding(not run.errors, run.errors[:_MOST_ERRORS])

    def accepts(self, schemas: Iterable[Schema], value: Any) -> bool:
        """Whether some schemas of the document, or made for it, all accept a value. Raises GrammarError if that takes too long."""
        run = _Run(self.document, self._pattern, self._steps)
        try:
            for schema in schemas:
                run.check(schema, value, "$")
        except (TooMuch, RecursionError):
            raise GrammarError("it takes too many steps to be understood; a simpler one is needed") from None
        return not run.errors

    def _pattern(self, text: str) -> Pattern:
        known = self._patterns.get(text)
        if known is None:
            known = self._patterns[text] = pattern_of(text)
        return known


class _Rule(NamedTuple):
    """What one keyword demands of values of one type."""

    type: str
    holds: Callable[[Any, Any], bool]
    words: str


_RULES = {
    "minLength": _Rule("string", lambda value, bound: len(value) >= bound, "is shorter than"),
    "maxLength": _Rule("string", lambda value, bound: len(value) <= bound, "is longer than"),
    "minItems": _Rule("array", lambda value, bound: len(value) >= bound, "has fewer items than"),
    "maxItems": _Rule("array", lambda value, bound: len(value) <= bound, "has more items than"),
    "minProperties": _Rule("object", lambda value, bound: len(value) >= bound, "has fewer properties than"),
    "maxProperties": _Rule("object", lambda value, bound: len(value) <= bound, "has more properties than"),
    "minimum": _Rule("number", lambda value, bound: value >= bound, "is below"),
    "maximum": _Rule("number", lambda value, bound: value <= bound, "is above"),
    "exclusiveMinimum": _Rule("number", lambda value, bound: value > bound, "is not above"),
    "exclusiveMaximum": _Rule("number", lambda value, bound: value < bound, "is not below"),
    "multipleOf": _Rule("number", lambda value, of: _multiple(value, of), "is no multiple of"),
}


class _Run:
    """One value's check."""

    def __init__(self, document: Document, pattern: Callable[[str], Pattern], steps: int) -> None:
        self.errors: list[str] = []
        self._document = document
        self._pattern = pattern
        self._left = steps
        self._depth = 0

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise TooMuch

    def check(self, schema: Schema, value: Any, at: str) -> _Seen:
        """Note what is wrong with a value, and return which of its parts were looked at."""
        seen = _Seen()
        self.spend(1)
        if isinstance(schema, bool):
            if not schema:
                self._wrong(at, "nothing is allowed here")
            return seen
        if self._depth > _MOST_DEPTH:
            raise TooMuch
        self._depth += 1
        words = self._document.keywords(schema)
        self.spend(len(words))
        for key in REFERENCES:
            if key in words:
                seen.add(self.check(self._document.resolve(schema, key), value, at))
        self._plain(words, value, at)
        self._applied(words, value, at, seen)
        if isinstance(value, dict):
            self._object(words, value, at, seen)
        elif isinstance(value, list):
            self._array(words, value, at, seen)
        self._depth -= 1
        return seen

    def _wrong(self, at: str, problem: str) -> None:
        self.errors.append(f"{at}: {problem}")

    def _try(self, schema: Schema, value: Any, at: str) -> _Seen | None:
        """What a value's parts were looked at by, None where it is not valid. Nothing is noted."""
        errors, self.errors = self.errors, []
        depth = self._depth
        seen = self.check(schema, value, at)
        valid, self.errors, self._depth = not self.errors, errors, depth
        return seen if valid else None

    def _plain(self, words: Keywords, value: Any, at: str) -> None:
        has = kinds(value)
        if "type" in words and not has & types_of(words):
            self._wrong(at, f"is not of type {' or '.join(sorted(types_of(words)))}")
        for key in ("const", "enum"):
            if key in words:
                self.spend(len(value) if isinstance(value, list | dict) else 1)
                if identity(value) not in self._document.identities(words, key):
                    self._wrong(at, f"is not {'one of the values that' if key == 'enum' else 'what'} {key} allows")
        for key in words.keys() & _RULES.keys():
            rule = _RULES[key]
            if rule.type in has and not rule.holds(value, words[key]):
                self._wrong(at, f"{rule.words} {key} {words[key]}")
        if "pattern" in words and "string" in has and not self._found(words["pattern"], value):
            self._wrong(at, f"does not match {words['pattern'][:80]}")

    def _found(self, pattern: str, text: str) -> bool:
        return self._pattern(pattern).found_in(text, self.spend)

    def _applied(self, words: Keywords, value: Any, at: str, seen: _Seen) -> None:
        for schema in words.get("allOf", ()):
            seen.add(self.check(schema, value, at))
        for key in ("anyOf", "oneOf"):
            if key in words:
                fitting = [one for schema in words[key] if (one := self._try(schema, value, at)) is not None]
                for one in fitting:
                    seen.add(one)
                if not fitting:
                    self._wrong(at, f"fits nothing of {key}")
                elif key == "oneOf" and len(fitting) > 1:
                    self._wrong(at, f"fits {len(fitting)} of oneOf")
        if "not" in words and self._try(words["not"], value, at) is not None:
            self._wrong(at, "fits what stands under not")
        if "if" in words:
            fits = self._try(words["if"], value, at)
            if fits is not None:
                seen.add(fits)
            seen.add(self.check(words.get("else" if fits is None else "then", True), value, at))

    def _object(self, words: Keywords, value: dict[str, Any], at: str, seen: _Seen) -> None:
        for name in words.get("required", ()):
            if name not in value:
                self._wrong(at, f"{name!r} is missing")
        for name, names in words.get("dependentRequired", {}).items():
            if name in value and (missing := [one for one in names if one not in value]):
                self._wrong(at, f"{missing[0]!r} is missing beside {name!r}")
        for name, schema in words.get("dependentSchemas", {}).items():
            if name in value:
                seen.add(self.check(schema, value, at))
        if "propertyNames" in words:
            for name in value:
                self.check(words["propertyNames"], name, f"{at}, the name {name!r}")
        own: set[str] = set()
        for name, schema in words.get("properties", {}).items():
            if name in value:
                own.add(name)
                self.check(schema, value[name], f"{at}.{name}")
        for pattern, schema in words.get("patternProperties", {}).items():
            for name in value:
                if self._found(pattern, name):
                    own.add(name)
                    self.check(schema, value[name], f"{at}.{name}")
        self._others("additionalProperties", words, value, at, own)
        seen.names |= own
        self._others("unevaluatedProperties", words, value, at, seen.names)

    def _others(self, key: str, words: Keywords, value: dict[str, Any], at: str, own: set[str]) -> None:
        if key in words:
            for name in value.keys() - own:
                own.add(name)
                self.check(words[key], value[name], f"{at}.{name}")

    def _array(self, words: Keywords, value: list[Any], at: str, seen: _Seen) -> None:
        first = words.get("prefixItems", [])
        for index, (schema, item) in enumerate(zip(first, value, strict=False)):
            seen.places.add(index)
            self.check(schema, item, f"{at}[{index}]")
        if "items" in words:
            for index, item in enumerate(value[len(first) :], len(first)):
                seen.places.add(index)
                self.check(words["items"], item, f"{at}[{index}]")
        if "contains" in words:
            fitting = [index for index, item in enumerate(value) if self._try(words["contains"], item, at) is not None]
            seen.places.update(fitting)
            low, high = words.get("minContains", 1), words.get("maxContains", len(value))
            if not low <= len(fitting) <= high:
                self._wrong(at, f"has {len(fitting)} items that contains asks for")
        if words.get("uniqueItems") is True:
            self.spend(len(value))
            if len({identity(item) for item in value}) < len(value):
                self._wrong(at, "has an item twice")
        if "unevaluatedItems" in words:
            for index in set(range(len(value))) - seen.places:
                seen.places.add(index)
                self.check(words["unevaluatedItems"], value[index], f"{at}[{index}]")


def _multiple(value: float, of: float) -> bool:
    if value != value or abs(value) == float("inf") or not of:
        return False
    return (Fraction(repr(value)) / Fraction(repr(of))).denominator == 1
