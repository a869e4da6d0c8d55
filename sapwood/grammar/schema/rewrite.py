"""Schemas in the keywords that a grammar can follow.

What has no such form is left out, and noted: the values have to be checked when they are complete. A rewriting accepts
nothing that the schema refuses, apart from what was noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from typing import Any, NamedTuple

from sapwood.base.errors import GrammarError
from sapwood.grammar.schema.check import SchemaCheck
from sapwood.grammar.schema.document import ANNOTATIONS, REFERENCES, Document, Keywords, Schema, identity, types_of
from sapwood.grammar.schema.evaluated import evaluated
from sapwood.grammar.schema.limits import (
    FARTHEST,
    FARTHEST_WHOLE,
    LONGEST,
    MOST_DIGITS,
    NO_ARRAY,
    counted,
    digits,
    inside,
    problem,
)
from sapwood.grammar.schema.negate import Disjoint, beyond, negated
from sapwood.grammar.schema.pattern import ANY, pattern_of, without_looking

FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
_AS_THEY_ARE = ("type", "const", "enum", "minLength", "minItems", "maxItems", "required")  # fmt: skip
_MOST_CASES = 32  # that the unions of one schema make together
_MOST_SEQUENCES = 65  # of unique items: four values
_MOST_BRANCHES = 64  # of oneOf that are compared with each other
_MOST_PLACES = 8  # where an item that `contains` asks for may stand


class Rewritten(NamedTuple):
    """`unchecked` are the places of keywords that were left out."""

    schema: Schema
    unchecked: tuple[str, ...]


def rewrite(schema: Schema) -> Rewritten:
    """A schema as a grammar can follow it. Raises GrammarError for what is wrong, or can neither be followed nor checked."""
    try:
        rewriting = _Rewriting(Document(schema), counting=True)
        rewritten = rewriting.whole()
        if rewriting.counted and "min/maxProperties" in problem(rewritten.schema):
            return _Rewriting(Document(schema), counting=False).whole()
        return rewritten
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None


class _Rewriting:
    """`counting`: properties are counted, which not every combination of schemas allows; `counted` says whether any were."""

    def __init__(self, document: Document, *, counting: bool) -> None:
        self.counted = False
        self._counting = counting
        self._document = document
        self._disjoint = Disjoint(document)
        self._check = SchemaCheck(document)
        self._unchecked: dict[str, None] = {}
        self._referred: dict[int, str] = {}  # of schemas that are referred to
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._patterns: dict[str, bool] = {}  # whether they are regular

    def whole(self) -> Rewritten:
        schema = self._schema(self._document.root, "")
        definitions: dict[str, Schema] = {}
        while self._waiting:
            name, target = self._waiting.pop()
            circular = self._circular(target, self._document.keywords(target))
            definitions[name] = self._schema(target, f"$ref {name}", inline=circular)
        if definitions:
            schema = {**({"allOf": [schema]} if isinstance(schema, bool) else schema), "$defs": definitions}
        if self._unchecked:
            for text in self._patterns:
                pattern_of(text)  # what cannot be read here cannot be checked
        return Rewritten(schema, tuple(self._unchecked))

    def _schema(self, schema: Schema, at: str, *, inline: bool = False) -> Schema:
        """A schema rewritten. `inline`: what it refers to is written out, not referred to."""
        self._document.spend()
        if isinstance(schema, bool):
            return schema
        words = self._document.keywords(schema)
        if not inline and self._circular(schema, words):
            return {"$ref": self._reference(schema)}
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
            if isinstance(target, bool) or inline:
                rules.append(self._schema(target, at))
            else:
                out["$ref"] = self._reference(target)
        chain = self._chain(words)
        parts = [one for one in words.get("allOf", ()) if not any(one is link for link in chain)]
        rules += [self._schema(self._document.followed_up(one) if inline else one, at) for one in parts]
        if chain:
            rules.append(self._any(self._linked(words, chain), f"{at}.allOf"))
        if inline:
            words = words | {
                key: [*map(self._document.followed_up, words[key])] for key in ("anyOf", "oneOf") if key in words
            }
        for more in (self._strings, self._counts, self._dependencies, self._names, self._items, self._unions):
            rules += more(words, at)
        rules += self._unevaluated(schema, words, at)
        return self._joined(out, rules, at)

    def _circular(self, schema: dict[str, Any], words: Keywords) -> bool:
        """Whether a schema adds to what it refers to and is itself part of that, which grammars do not take as it is."""
        restricting = words.keys() - ANNOTATIONS
        if len(restricting) < 2 and len(words.get("allOf", ())) < 2:
            return False
        cases = (case for key in ("allOf", "anyOf", "oneOf") for case in words.get(key, ()))
        places = [one for one in (schema, *cases) if isinstance(one, dict)]
        targets = [self._document.resolve(one, key) for one in places for key in REFERENCES if key in one]
        return any(id(schema) in self._document.reach(target) for target in targets)

    def _joined(self, out: dict[str, Any], rules: Sequence[Schema], at: str) -> Schema:
        """A schema and others that hold as well."""
        ways, largest = 1, 1
        kept: list[Schema] = []
        for rule in rules:
            if rule is False:
                return False
            if rule is True or rule == {}:
                continue
            if isinstance(rule, dict) and "anyOf" in rule:
                count = max(len(rule["anyOf"]), 1)
                ways, largest = ways * count, max(largest, count)
                if ways > max(_MOST_CASES, largest):
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
        if not all(self._followed(text) for text in patterns):
            self._leave(at, "patternProperties")
            return {"additionalProperties": True}
        if len(patterns) > 1 and "not disjoint" in problem({"patternProperties": dict.fromkeys(patterns, True)}):
            self._leave(at, "patternProperties")
            return {"patternProperties": {"|".join(f"(?:{text})" for text in patterns): {}}}
        return {"patternProperties": {text: self._schema(one, f"{at}.{text}") for text, one in patterns.items()}}

    # --- numbers and strings ---

    def _numbers(self, words: Keywords, at: str) -> dict[str, Any]:
        """Bounds as grammars take them: floats, not too far from zero nor too close. They may allow less, never more."""
        out: dict[str, Any] = {}
        if "multipleOf" in words:
            if digits(words["multipleOf"]) > MOST_DIGITS:
                self._leave(at, "multipleOf")
            else:
                out["multipleOf"] = words["multipleOf"]
        farthest = FARTHEST_WHOLE if types_of(words) == {"integer"} else FARTHEST
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if key not in words:
                continue
            sign = 1 if key.lower().endswith("maximum") else -1
            if sign * words[key] < -farthest:
                self._leave(at, key)
            else:
                out[key] = sign * min(inside(sign * words[key]), farthest)
        return out

    def _strings(self, words: Keywords, at: str) -> Iterator[Schema]:
        if words.get("maxLength", LONGEST) < LONGEST:  # no output is longer
            yield {"maxLength": words["maxLength"]}
        if "pattern" not in words:
            return
        text = words["pattern"]
        if self._followed(text):
            yield {"pattern": text}
            return
        others = without_looking(pattern_of(text), text)
        if others is None or not all(map(self._followed, others)):
            self._leave(at, "pattern")
        else:
            yield from ({"pattern": other} for other in others)

    def _followed(self, text: str) -> bool:
        """Whether a grammar can follow an expression. One that nobody can read is for the grammar to refuse."""
        if text not in self._patterns:
            try:
                regular = pattern_of(text).regular
            except GrammarError:
                regular = True
            else:
                regular = regular and not problem({"type": "string", "pattern": text})
            self._patterns[text] = regular
        return self._patterns[text]

    # --- objects ---

    def _counts(self, words: Keywords, at: str) -> Iterator[Schema]:
        """How many properties. A grammar counts only beside named ones that are all required; else they are written out."""
        required = frozenset(words.get("required", ()))
        low, high = words.get("minProperties", 0), words.get("maxProperties")
        counts: dict[str, int] = {"minProperties": low} if low > len(required) else {}
        if high is not None:
            counts["maxProperties"] = high
        named = tuple(name for name in words.get("properties", {}) if name not in required)
        closed = words.get("additionalProperties") is False and not words.get("patternProperties")
        if counts and not self._counting:
            self._leave(at, " and ".join(counts))
            return
        self.counted |= bool(counts)
        if not named:
            yield counts
            return
        for key, count in counts.items():
            cases = counted(named, key, count - len(required), closed)
            if cases is None:
                self._leave(at, key)
            else:
                yield {"anyOf": cases}

    def _dependencies(self, words: Keywords, at: str) -> Iterator[Schema]:
        given = frozenset(words.get("required", ()))
        needs = [(name, {"required": names}) for name, names in words.get("dependentRequired", {}).items() if names]
        for name, schema in [*needs, *words.get("dependentSchemas", {}).items()]:
            inner = self._schema(schema, f"{at}.{name}")
            if name in given or inner is True or inner == {}:
                yield inner
            else:
                with_it = {"required": [name], "allOf": [inner]} if inner is not False else False
                yield {"anyOf": [{"properties": {name: False}}, with_it]}

    def _names(self, words: Keywords, at: str) -> Iterator[Schema]:
        if "propertyNames" not in words:
            return
        rules = self._name_rules(words["propertyNames"])
        if rules is None or (words.get("patternProperties") and any("patternProperties" in rule for rule in rules)):
            self._leave(at, "propertyNames")
        else:
            yield from rules

    def _name_rules(self, schema: Schema, depth: int = 0) -> list[dict[str, Any]] | None:
        """Schemas of objects whose names another schema accepts; None where that cannot be told."""
        if isinstance(schema, bool):
            return [] if schema else [{"additionalProperties": False}]
        words = self._document.keywords(schema)
        if "type" in words and "string" not in types_of(words):
            return [{"additionalProperties": False}]
        if values := self._document.values(schema):
            fitting = [one for one in values if isinstance(one, str) and self._check.accepts([schema], one)]
            return [{"properties": {name: {} for name in fitting}, "additionalProperties": False}]
        rules: list[dict[str, Any]] = []
        if "$ref" in words and depth < _MOST_PLACES:
            return self._name_rules(self._document.resolve(schema), depth + 1) if words.keys() == {"$ref"} else None
        if words.keys() & _OF_STRINGS and depth < _MOST_PLACES:
            return None
        if "pattern" in words:
            if not self._followed(words["pattern"]):
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
        values = None if "prefixItems" in words else self._document.values(words.get("items", True))
        if values is not None:
            values = list({identity(value): value for value in values}.values())
            low, high = words.get("minItems", 0), min(len(values), words.get("maxItems", len(values)))
            few = high <= _MOST_PLACES and math.perm(len(values), high) <= _MOST_SEQUENCES
            if few and sum(math.perm(len(values), size) for size in range(low, high + 1)) <= _MOST_SEQUENCES:
                sequences = [list(one) for size in range(low, high + 1) for one in permutations(values, size)]
                return {"anyOf": [NO_ARRAY, {"enum": sequences}]}
        self._leave(at, "uniqueItems")
        return True

    def _contains(self, words: Keywords, at: str) -> Schema:
        """One item of the first few is what is asked for, wherever it stands among them."""
        schema, low, high = words["contains"], words.get("minContains", 1), words.get("maxContains")
        if schema is True or schema == {}:
            return {"minItems": low} | ({} if high is None else {"maxItems": high})
        if low == 0 and high is None:
            return True
        wanted = self._schema(schema, f"{at}.contains")
        others = True if high is None else negated(self._document, schema)
        if low > 1 or (high is not None and (high > 1 or others is None)):
            self._leave(at, "contains")
            return True
        assert others is not None
        other = self._schema(others, f"{at}.contains")
        cases: list[Schema] = [{"items": other}] if low == 0 else []
        if high != 0:
            places = range(min(words.get("maxItems", _MOST_PLACES), _MOST_PLACES))
            cases += [{"prefixItems": [other] * n + [wanted], "items": other, "minItems": n + 1} for n in places]
        return {"anyOf": cases or [NO_ARRAY]}

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
        if self._disjoint.by_value(base, cases):
            return cases
        if len(cases) > _MOST_BRANCHES:
            self._leave(at, "oneOf")
            return cases
        overlaps: dict[int, list[Schema]] = {}
        for first, second in combinations(range(len(cases)), 2):
            if not self._disjoint([base, cases[first]], [base, cases[second]]):
                overlaps.setdefault(first, []).append(cases[second])
                overlaps.setdefault(second, []).append(cases[first])
        for index, case in enumerate(cases):
            others = overlaps.get(index, [])
            if len(others) > _MOST_PLACES:
                self._leave(at, "oneOf")
                return cases
            refused = [negated(self._document, beyond(self._document, one, case, base), within) for one in others]
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

    def _chain(self, words: Keywords) -> list[dict[str, Any]]:
        """Conditions in allOf of which one holds at most, as a discriminator's do: with n of them there are n + 1 cases."""
        every = [one for one in words.get("allOf", ()) if isinstance(one, dict)]
        told = [(one, self._document.keywords(one)) for one in every]
        chain = [one for one, has in told if has.keys() - ANNOTATIONS == {"if"} and "then" in has and "else" not in has]
        if not 2 <= len(chain) <= _MOST_BRANCHES:
            return []
        base = {key: value for key, value in words.items() if key in _TELLING}
        apart = all(self._disjoint([base, one["if"]], [base, two["if"]]) for one, two in combinations(chain, 2))
        exact = apart and all(negated(self._document, one["if"], types_of(words)) is not None for one in chain)
        return chain if exact else []

    def _linked(self, words: Keywords, chain: Sequence[dict[str, Any]]) -> list[Schema]:
        refused = [negated(self._document, one["if"], types_of(words)) for one in chain]
        return [*({"allOf": [one["if"], one["then"]]} for one in chain), {"allOf": refused}]

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
                written = (
                    self._named({"patternProperties": dict.fromkeys(parts.patterns, True)}, at)
                    if parts.patterns
                    else {}
                )
                rest = self._schema(words[key], f"{at}.*")
                yield {"properties": {name: {} for name in parts.names}, "additionalProperties": rest, **written}


_ALONE = frozenset({"anyOf", "pattern"})  # keywords that mean the same beside any others
_TELLING = frozenset("type const enum required properties allOf additionalProperties minimum maximum".split())
_OF_STRINGS = frozenset("not anyOf oneOf allOf if $dynamicRef".split())
