"""Schemas in the keywords that a grammar can follow.

What has no such form is left out, and noted: the values have to be checked when they are complete. A rewriting accepts
nothing that the schema refuses, apart from what was noted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import permutations
from typing import Any, NamedTuple

import llguidance

from sapwood.base.errors import GrammarError
from sapwood.grammar.schema.check import SchemaCheck
from sapwood.grammar.schema.document import TYPES, Document, Keywords, Schema, identity, types_of
from sapwood.grammar.schema.evaluated import evaluated
from sapwood.grammar.schema.negate import Disjoint, negated
from sapwood.grammar.schema.pattern import ANY, pattern_of, without_looking

FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
_AS_THEY_ARE = ("type", "const", "enum", "minLength", "maxLength", "minItems", "maxItems", "minProperties",
                "maxProperties", "required")  # fmt: skip
_FARTHEST = 2.0**63 - 1024  # the largest bound that grammars take
_MOST_DIGITS = 8  # of a divisor
_MOST_STEPS = 20_000
_MOST_CASES = 256  # that the unions of one schema make together
_MOST_SEQUENCES = 400
_MOST_PLACES = 8  # where an item that `contains` asks for may stand


class Rewritten(NamedTuple):
    """`unchecked` are the places of keywords that were left out."""

    schema: Schema
    unchecked: tuple[str, ...]


def rewrite(schema: Schema) -> Rewritten:
    """A schema as a grammar can follow it. Raises GrammarError for what is wrong, or can neither be followed nor checked."""
    try:
        return _Rewriting(Document(schema)).whole()
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None


class _Rewriting:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._disjoint = Disjoint(document)
        self._check = SchemaCheck(document)
        self._unchecked: dict[str, None] = {}
        self._referred: dict[int, str] = {}  # of schemas that are referred to
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._patterns: dict[str, bool] = {}  # whether they are regular
        self._steps = 0

    def whole(self) -> Rewritten:
        schema = self._schema(self._document.root, "")
        definitions: dict[str, Schema] = {}
        while self._waiting:
            name, target = self._waiting.pop()
            definitions[name] = self._schema(target, f"$ref {name}")
        if definitions:
            schema = {**({"allOf": [schema]} if isinstance(schema, bool) else schema), "$defs": definitions}
        if self._unchecked:
            for text in self._patterns:
                pattern_of(text)  # what cannot be read here cannot be checked
        return Rewritten(schema, tuple(self._unchecked))

    def _schema(self, schema: Schema, at: str) -> Schema:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise GrammarError(f"it is too large: written out, it has more than {_MOST_STEPS} schemas")
        if isinstance(schema, bool):
            return schema
        words = self._document.keywords(schema)
        out: dict[str, Any] = {key: words[key] for key in _AS_THEY_ARE if key in words}
        out |= self._numbers(words, at)
        out |= self._inner(words, at)
        if words.get("format") in FORMATS:
            out["format"] = words["format"]
        if "x-guidance" in words:
            out["x-guidance"] = words["x-guidance"]
        rules: list[Schema] = []
        if "$ref" in words or "$dynamicRef" in words:
            target = self._document.resolve(schema, "$ref" if "$ref" in words else "$dynamicRef")
            if isinstance(target, bool):
                rules.append(target)
            else:
                out["$ref"] = self._reference(target)
        rules += [self._schema(one, at) for one in words.get("allOf", ())]
        for more in (self._strings, self._dependencies, self._names, self._items, self._unions):
            rules += more(words, at)
        rules += self._unevaluated(schema, words, at)
        return self._joined(out, rules, at)

    def _joined(self, out: dict[str, Any], rules: Sequence[Schema], at: str) -> Schema:
        """A schema and others that hold as well."""
        cases = 1
        kept: list[Schema] = []
        for rule in rules:
            if rule is False:
                return False
            if rule is True or rule == {}:
                continue
            if isinstance(rule, dict) and "anyOf" in rule:
                cases *= max(len(rule["anyOf"]), 1)
                if cases > _MOST_CASES:
                    self._leave(at, "combinations")
                    continue
            kept.append(rule)
        if not kept:
            return out
        if len(kept) == 1 and isinstance(kept[0], dict) and kept[0].keys() <= _ALONE - out.keys():
            return {**out, **kept[0]}
        return {**out, "allOf": kept}

    def _leave(self, at: str, keyword: str) -> None:
        self._unchecked[f"{at}.{keyword}".lstrip(".")] = None

    def _reference(self, target: dict[str, Any]) -> str:
        name = self._referred.get(id(target))
        if name is None:
            name = self._referred[id(target)] = str(len(self._referred))
            self._waiting.append((name, target))
        return f"#/$defs/{name}"

    def _inner(self, words: Keywords, at: str) -> dict[str, Any]:
        """Keywords that hold schemas of a value's parts."""
        out: dict[str, Any] = {}
        if "properties" in words:
            inner = words["properties"].items()
            out["properties"] = {name: self._schema(one, f"{at}.{name}") for name, one in inner}
        if "prefixItems" in words:
            inner = enumerate(words["prefixItems"])
            out["prefixItems"] = [self._schema(one, f"{at}[{index}]") for index, one in inner]
        if "items" in words:
            out["items"] = self._schema(words["items"], f"{at}[]")
        if words.get("patternProperties"):
            out |= self._named(words, at)
        if "additionalProperties" in words and "additionalProperties" not in out:
            out["additionalProperties"] = self._schema(words["additionalProperties"], f"{at}.*")
        return out

    def _named(self, words: Keywords, at: str) -> dict[str, Any]:
        patterns = words["patternProperties"]
        if not all(self._regular(text) for text in patterns):
            self._leave(at, "patternProperties")
            return {"additionalProperties": True}
        if len(patterns) > 1 and not _told_apart(list(patterns)):
            self._leave(at, "patternProperties")
            return {"patternProperties": {"|".join(f"(?:{text})" for text in patterns): {}}}
        return {"patternProperties": {text: self._schema(one, f"{at}.{text}") for text, one in patterns.items()}}

    # --- numbers and strings ---

    def _numbers(self, words: Keywords, at: str) -> dict[str, Any]:
        """Bounds as grammars take them: floats, not too far away. Beyond that they allow less, never more."""
        out: dict[str, Any] = {}
        if "multipleOf" in words:
            if _digits(words["multipleOf"]) > _MOST_DIGITS:
                self._leave(at, "multipleOf")
            else:
                out["multipleOf"] = words["multipleOf"]
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if key not in words:
                continue
            bound, sign = words[key], 1 if key.lower().endswith("maximum") else -1
            if sign * bound < -_FARTHEST:
                self._leave(at, key)
            elif sign * bound > _FARTHEST:
                out[key] = sign * _FARTHEST
            else:
                out[key] = _within(bound, sign)
        return out

    def _strings(self, words: Keywords, at: str) -> Iterator[Schema]:
        if "pattern" not in words:
            return
        text = words["pattern"]
        if self._regular(text):
            yield {"pattern": text}
            return
        others = without_looking(pattern_of(text), text)
        if others is None:
            self._leave(at, "pattern")
        for other in others or ():
            yield {"pattern": other}

    def _regular(self, text: str) -> bool:
        """Whether a grammar can follow an expression. One that cannot be read here is for it to judge."""
        if text not in self._patterns:
            try:
                self._patterns[text] = pattern_of(text).regular
            except GrammarError:
                self._patterns[text] = True
        return self._patterns[text]

    # --- objects ---

    def _dependencies(self, words: Keywords, at: str) -> Iterator[Schema]:
        given = frozenset(words.get("required", ()))
        needs = [(name, {"required": names}) for name, names in words.get("dependentRequired", {}).items() if names]
        for name, schema in [*needs, *words.get("dependentSchemas", {}).items()]:
            inner = self._schema(schema, f"{at}, beside {name}")
            if name in given or inner is True or inner == {}:
                yield inner
            else:
                with_it = {"required": [name], "allOf": [inner]} if inner is not False else False
                yield {"anyOf": [{"properties": {name: False}}, with_it]}

    def _names(self, words: Keywords, at: str) -> Iterator[Schema]:
        if "propertyNames" not in words:
            return
        rules = self._name_rules(words["propertyNames"])
        if rules is None or (len(rules) > 1 or rules and "properties" not in rules[0]) and words.get("patternProperties"):
            self._leave(at, "propertyNames")
        else:
            yield from rules

    def _name_rules(self, schema: Schema, depth: int = 0) -> list[Schema] | None:
        """Schemas of objects whose names another schema accepts; None where that cannot be told."""
        if isinstance(schema, bool):
            return [] if schema else [{"maxProperties": 0}]
        words = self._document.keywords(schema)
        if "type" in words and "string" not in types_of(words):
            return [{"maxProperties": 0}]
        if values := self._values(schema):
            fitting = [one for one in values if isinstance(one, str) and self._check.accepts([schema], one)]
            return [{"properties": {name: {} for name in fitting}, "additionalProperties": False}]
        rules: list[Schema] = []
        if "$ref" in words and depth < _MOST_PLACES:
            return self._name_rules(self._document.resolve(schema), depth + 1) if words.keys() == {"$ref"} else None
        if words.keys() & _OF_STRINGS and depth < _MOST_PLACES:
            return None
        if "pattern" in words:
            if not self._regular(words["pattern"]):
                return None
            rules.append({"patternProperties": {words["pattern"]: {}}, "additionalProperties": False})
        if "minLength" in words or "maxLength" in words:
            count = f"{words.get('minLength', 0)},{words.get('maxLength', '')}"
            rules.append({"patternProperties": {f"^{ANY}{{{count}}}$": {}}, "additionalProperties": False})
        return rules if len(rules) < 2 else None

    # --- arrays ---

    def _items(self, words: Keywords, at: str) -> Iterator[Schema]:
        if words.get("uniqueItems") is True and words.get("maxItems", 2) > 1:
            yield self._unique(words, at)
        if "contains" in words:
            yield self._contains(words, at)

    def _unique(self, words: Keywords, at: str) -> Schema:
        """All sequences of a few values that items may have."""
        values = None if "prefixItems" in words else self._values(words.get("items", True))
        if values is not None:
            values = list({identity(value): value for value in values}.values())
            low, high = words.get("minItems", 0), min(len(values), words.get("maxItems", len(values)))
            if sum(math.perm(len(values), size) for size in range(low, high + 1)) <= _MOST_SEQUENCES:
                sequences = [list(one) for size in range(low, high + 1) for one in permutations(values, size)]
                return {"anyOf": [{"type": [type for type in TYPES if type != "array"]}, {"enum": sequences}]}
        self._leave(at, "uniqueItems")
        return True

    def _values(self, schema: Schema, depth: int = 0) -> list[Any] | None:
        """The few values that a schema names, not all of which it has to accept."""
        if isinstance(schema, bool) or depth > _MOST_PLACES:
            return None
        words = self._document.keywords(schema)
        if "const" in words:
            return [words["const"]]
        if "enum" in words:
            return list(words["enum"])
        if "type" in words and types_of(words) <= {"boolean", "null"}:
            return [*((True, False) if "boolean" in types_of(words) else ()), *((None,) if "null" in types_of(words) else ())]
        return self._values(self._document.resolve(schema), depth + 1) if "$ref" in words else None

    def _contains(self, words: Keywords, at: str) -> Schema:
        """One item of the first few is what is asked for, wherever it stands among them."""
        schema, low, high = words["contains"], words.get("minContains", 1), words.get("maxContains")
        if schema is True or schema == {}:
            return {"minItems": low} | ({} if high is None else {"maxItems": high})
        if low == 0 and high is None:
            return True
        wanted = self._schema(schema, f"{at}, contains")
        others = True if high is None else negated(self._document, schema)
        if low > 1 or high is not None and (high > 1 or others is None):
            self._leave(at, "contains")
            return True
        assert others is not None
        other = self._schema(others, f"{at}, contains")
        cases: list[Schema] = [{"items": other}] if low == 0 else []
        if high != 0:
            for place in range(min(words.get("maxItems", _MOST_PLACES), _MOST_PLACES)):
                cases.append({"prefixItems": [other] * place + [wanted], "items": other, "minItems": place + 1})
        return {"anyOf": cases or [{"type": [type for type in TYPES if type != "array"]}]}

    # --- what applies to the whole ---

    def _unions(self, words: Keywords, at: str) -> Iterator[Schema]:
        within = types_of(words)
        if "anyOf" in words:
            yield self._any(words["anyOf"], f"{at}.anyOf")
        if "oneOf" in words:
            yield self._any(self._one(words, within, at), f"{at}.oneOf")
        if "not" in words:
            other = negated(self._document, words["not"], within)
            if other is None:
                self._leave(at, "not")
            else:
                yield self._schema(other, f"{at}.not")
        if "if" in words and ("then" in words or "else" in words):
            yield self._any(self._conditional(words, within, at), f"{at}.if")

    def _any(self, cases: Sequence[Schema], at: str) -> Schema:
        written = [self._schema(case, f"{at}[{index}]") for index, case in enumerate(cases)]
        return True if any(one is True or one == {} for one in written) else {"anyOf": written}

    def _one(self, words: Keywords, within: frozenset[str], at: str) -> list[Schema]:
        """The cases of oneOf, none of which accepts what another does."""
        base = {key: value for key, value in words.items() if key in _TELLING}
        cases: list[Schema] = list(words["oneOf"])
        exact: list[Schema] = []
        for index, case in enumerate(cases):
            rest = cases[:index] + cases[index + 1 :]
            others = [one for one in rest if not self._disjoint([base, case], [base, one])]
            refused = [negated(self._document, one, within) for one in others]
            if None in refused:
                self._leave(at, "oneOf")
                return cases
            exact.append({"allOf": [case, *refused]} if refused else case)
        return exact

    def _conditional(self, words: Keywords, within: frozenset[str], at: str) -> list[Schema]:
        condition, then, otherwise = words["if"], words.get("then", True), words.get("else", True)
        refused = negated(self._document, condition, within)
        if refused is None:
            self._leave(at, "if")
            refused = True
        return [{"allOf": [condition, then]}, {"allOf": [refused, otherwise]}]

    def _unevaluated(self, schema: dict[str, Any], words: Keywords, at: str) -> Iterator[Schema]:
        for key in ("unevaluatedProperties", "unevaluatedItems"):
            if words.get(key, True) is True or words[key] == {}:
                continue
            parts = evaluated(self._document, schema, key)
            if parts is None:
                self._leave(at, key)
            elif parts.everything:
                continue
            elif key == "unevaluatedItems":
                yield {"prefixItems": [{}] * parts.num_items, "items": self._schema(words[key], f"{at}[]")}
            else:
                written = self._named({"patternProperties": {text: True for text in parts.patterns}}, at) if parts.patterns else {}
                rest = self._schema(words[key], f"{at}.*")
                yield {"properties": {name: {} for name in parts.names}, "additionalProperties": rest, **written}


_ALONE = frozenset({"anyOf", "pattern"})  # keywords that mean the same beside any others
_TELLING = frozenset("type const enum required properties allOf additionalProperties minimum maximum".split())
_OF_STRINGS = frozenset("not anyOf oneOf allOf if $dynamicRef".split())


def _within(bound: float, sign: int) -> float:
    """A bound, or the next float within where there is no such float."""
    rounded = float(bound)
    if rounded == bound:
        return bound
    return rounded if sign * rounded < sign * bound else math.nextafter(rounded, -sign * math.inf)


def _digits(number: float) -> int:
    return len(Decimal(repr(number)).as_tuple().digits)


def _told_apart(patterns: list[str]) -> bool:
    """Whether no name matches two expressions."""
    schema = json.dumps({"patternProperties": dict.fromkeys(patterns, True)})
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    return "not disjoint" not in llguidance.LLMatcher.validate_grammar(grammar)
