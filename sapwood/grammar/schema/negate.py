"""What a schema does not accept, as a schema; and whether two schemas have anything in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sapwood.grammar.schema.check import SchemaCheck
from sapwood.grammar.schema.document import ANNOTATIONS, TYPES, Document, Schema, identity, kinds, types_of
from sapwood.grammar.schema.pattern import all_but

ALL = frozenset(TYPES)
_MOST_DEPTH = 16
_MOST_CASES = 32
_MOST_CHARS = 4000  # of the expression of all texts but some

_BEYOND = {"minLength": ("string", "maxLength", -1), "maxLength": ("string", "minLength", 1),
           "minItems": ("array", "maxItems", -1), "maxItems": ("array", "minItems", 1),
           "minProperties": ("object", "maxProperties", -1), "maxProperties": ("object", "minProperties", 1)}  # fmt: skip
_OPPOSITE = {"minimum": "exclusiveMaximum", "maximum": "exclusiveMinimum", "exclusiveMinimum": "maximum",
             "exclusiveMaximum": "minimum"}  # fmt: skip

_SEPARATE = frozenset(
    "type const enum required minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern "
    "minItems maxItems uniqueItems minProperties maxProperties propertyNames allOf anyOf".split()
)  # keywords whose meaning no other changes


class Unknown(Exception):
    """There is no exact answer here."""


def negated(document: Document, schema: Schema, within: frozenset[str] = ALL) -> Schema | None:
    """The schema of all values of some types that a schema refuses; None where that cannot be written exactly."""
    try:
        cases = _Negation(document).of(schema, within, 0)
    except Unknown:
        return None
    return {"anyOf": cases} if cases else False


class _Negation:
    def __init__(self, document: Document) -> None:
        self._document = document

    def of(self, schema: Schema, within: frozenset[str], depth: int) -> list[Schema]:
        if isinstance(schema, bool):
            return [] if schema else [True]
        if depth > _MOST_DEPTH:
            raise Unknown
        self._document.spend()
        words = self._document.keywords(schema)
        here = types_of(words) & within if "type" in words else within
        if "number" in types_of(words) and "integer" in within:
            here |= {"integer"}
        cases: list[Schema] = []
        for key, value in words.items():
            if key in ("properties", "const", "enum") or key not in ANNOTATIONS:
                cases += self._keyword(schema, key, value, within if key == "type" else here, depth + 1)
                if len(cases) > _MOST_CASES:
                    raise Unknown
        return cases

    def _keyword(
        self, schema: dict[str, Any], key: str, value: Any, within: frozenset[str], depth: int
    ) -> list[Schema]:
        """What breaks one keyword."""
        match key:
            case "type":
                return _other_types(types_of({"type": value}), within)
            case "const":
                return _other_values([value])
            case "enum":
                return _other_values(value)
            case "required":
                return [{"type": "object", "properties": {name: False}} for name in value]
            case "properties":
                return list(self._properties(value, depth))
            case "dependentRequired":
                return [
                    {"type": "object", "required": [name], "properties": {missing: False}}
                    for name, names in value.items()
                    for missing in names
                ]
            case "not":
                return [value]
            case "anyOf":
                parts = [{"anyOf": self.of(one, within, depth)} for one in value]
                return [{"allOf": parts}]
            case "allOf":
                return [case for one in value for case in self.of(one, within, depth)]
            case "$ref":
                return self.of(self._document.resolve(schema), within, depth)
            case "contains" if not {"minContains", "maxContains"} & schema.keys():
                return [{"type": "array", "items": {"anyOf": self.of(value, ALL, depth)}}]
            case _ if key in _OPPOSITE:
                return [{"type": "number", _OPPOSITE[key]: value}]
            case _ if key in _BEYOND:
                type, other, step = _BEYOND[key]
                return [{"type": type, other: value + step}] if value + step >= 0 else []
        if key.startswith("x-") or not _restricts(key):
            return []
        raise Unknown

    def _properties(self, properties: dict[str, Schema], depth: int) -> Iterator[Schema]:
        for name, schema in properties.items():
            cases = self.of(schema, ALL, depth)
            if cases:
                yield {"type": "object", "required": [name], "properties": {name: {"anyOf": cases}}}


def _restricts(key: str) -> bool:
    return key in {
        "$dynamicRef", "additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties", "items",
        "prefixItems", "unevaluatedItems", "uniqueItems", "contains", "oneOf", "if", "dependentSchemas", "pattern",
        "multipleOf",
    }  # fmt: skip


def _other_types(types: frozenset[str], within: frozenset[str]) -> list[Schema]:
    if "integer" in types and "number" not in types and "number" in within:
        raise Unknown  # fractions cannot be told from other numbers by a schema
    rest = [
        type for type in TYPES if type not in types and type in within and not (type == "integer" and "number" in types)
    ]
    return [{"type": rest}] if rest else []


def _other_values(values: list[Any]) -> list[Schema]:
    """Everything but some values."""
    by_type: dict[str, list[Any]] = {}
    for value in values:
        by_type.setdefault("number" if "number" in kinds(value) else min(kinds(value)), []).append(value)
    cases: list[Schema] = [{"type": [type for type in TYPES if (type not in by_type and type != "integer") or
                                     (type == "integer" and "number" not in by_type)]}]  # fmt: skip
    for type, excluded in by_type.items():
        match type:
            case "boolean":
                cases += [{"const": one} for one in (True, False) if one not in excluded]
            case "string":
                if sum(len(text) ** 2 for text in excluded) > _MOST_CHARS:
                    raise Unknown  # its expression is as long
                cases.append({"type": "string", "pattern": "^(?:" + "|".join(all_but(excluded)) + ")$"})
            case "number":
                points = sorted(set(excluded))
                cases += [{"type": "number", "exclusiveMaximum": points[0]}]
                cases += [
                    {"type": "number", "exclusiveMinimum": a, "exclusiveMaximum": b}
                    for a, b in itertools.pairwise(points)
                ]
                cases += [{"type": "number", "exclusiveMinimum": points[-1]}]
            case "array" | "object" if not any(excluded):
                cases.append({"type": type, "minItems" if type == "array" else "minProperties": 1})
            case "array" | "object":
                raise Unknown
    return cases


@dataclass
class _Facts:
    """What is certain about all values that some schemas accept together."""

    types: frozenset[str] = frozenset({"null", "boolean", "object", "array", "integer", "fraction", "string"})
    values: list[Any] | None = None
    required: set[str] = field(default_factory=set)
    properties: dict[str, list[Schema]] = field(default_factory=dict)
    closed: list[set[str]] = field(default_factory=list)
    ranges: dict[str, list[float]] = field(default_factory=dict)
    unions: list[list[Schema]] = field(default_factory=list)

    def forbids(self, name: str) -> bool:
        return False in self.properties.get(name, ()) or any(name not in names for names in self.closed)


_RANGES = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems"),
           "object": ("minProperties", "maxProperties"), "integer": ("minimum", "maximum"),
           "fraction": ("minimum", "maximum")}  # fmt: skip


class Disjoint:
    """Tells schemas apart: by types, values, bounds, and properties that one of them requires."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._check = SchemaCheck(document)
        self._known: dict[tuple[int, ...], tuple[Sequence[Schema], _Facts | None]] = {}

    def __call__(self, first: Sequence[Schema], second: Sequence[Schema], depth: int = 0) -> bool:
        """Whether no value is accepted by all of `first` and all of `second`; True is certain, False is not."""
        self._document.spend()
        if depth > _MOST_DEPTH:
            return False
        a, b = self._facts(first), self._facts(second)
        if a is None or b is None:
            return True
        for facts, others in ((a, second), (b, first)):
            if facts.values is not None:
                return not any(self._check.accepts(others, value) for value in facts.values)
        shared = {type for type in a.types & b.types if not _apart(a, b, type)}
        if "object" in shared and self._objects(a, b, depth):
            shared.discard("object")
        if not shared:
            return True
        for facts, others in ((a, second), (b, first)):
            for union in facts.unions:
                if all(self([*others], [case], depth + 1) for case in union):
                    return True
        return False

    def by_value(self, base: Schema, cases: Sequence[Schema]) -> bool:
        """Whether some property that all cases require tells them apart by its values, as a discriminator does."""
        found = [self._facts([base, case]) for case in cases]
        facts = [one for one in found if one is not None]
        if not facts or any(one.types != {"object"} for one in facts):
            return False
        for name in frozenset.intersection(*(frozenset(one.required) for one in facts)):
            inner = [self._facts(one.properties.get(name, [])) for one in facts]
            named = [{*map(identity, one.values)} for one in inner if one is not None and one.values is not None]
            if len(named) == len(facts) and len(set.union(*named)) == sum(map(len, named)):
                return True
        return False

    def _objects(self, a: _Facts, b: _Facts, depth: int) -> bool:
        for name in sorted(a.required | b.required):
            if a.forbids(name) or b.forbids(name):
                return True
            mine, others = a.properties.get(name), b.properties.get(name)
            if mine and others and self(mine, others, depth + 1):
                return True
        return False

    def _facts(self, schemas: Sequence[Schema]) -> _Facts | None:
        """None where nothing is accepted."""
        key = tuple(map(id, schemas))
        if key not in self._known:
            facts = _Facts()
            self._known[key] = schemas, facts if all(self._add(facts, one, 0) for one in schemas) else None
        return self._known[key][1]

    def _add(self, facts: _Facts, schema: Schema, depth: int) -> bool:
        if isinstance(schema, bool):
            return schema
        if depth > _MOST_DEPTH:
            return True
        words = self._document.keywords(schema)
        self._document.spend()
        if "type" in words:
            types = {
                kind for type in types_of(words) for kind in (("integer", "fraction") if type == "number" else (type,))
            }
            facts.types &= types
        for values in ([words["const"]] if "const" in words else None, words.get("enum")):
            if values is not None:
                known = None if facts.values is None else {identity(value) for value in facts.values}
                facts.values = [value for value in values if known is None or identity(value) in known]
        facts.required |= set(words.get("required", ()))
        for name, inner in words.get("properties", {}).items():
            facts.properties.setdefault(name, []).append(inner)
        if words.get("additionalProperties") is False and not words.get("patternProperties"):
            facts.closed.append(set(words.get("properties", ())))
        for key in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
            if key in words:
                facts.ranges.setdefault(key, []).append(words[key])
        for key in ("minimum", "maximum"):
            exclusive = "exclusive" + key.capitalize()
            facts.ranges.setdefault(key, []).extend(words[one] for one in (key, exclusive) if one in words)
        facts.unions += [words[key] for key in ("anyOf", "oneOf") if key in words and len(words[key]) <= _MOST_CASES]
        inner = [*words.get("allOf", ()), *([self._document.resolve(schema)] if "$ref" in words else ())]
        return all(self._add(facts, one, depth + 1) for one in inner)


def _apart(a: _Facts, b: _Facts, type: str) -> bool:
    if type not in _RANGES:
        return False
    low, high = _RANGES[type]
    lows = [*a.ranges.get(low, ()), *b.ranges.get(low, ())]
    highs = [*a.ranges.get(high, ()), *b.ranges.get(high, ())]
    return bool(lows and highs and max(lows) > min(highs))


def beyond(document: Document, schema: Schema, *known: Schema) -> Schema:
    """A schema without those of its keywords that others, which hold as well, have too."""
    schema = document.followed_up(schema)
    if isinstance(schema, bool):
        return schema
    words = dict(document.keywords(schema))
    for other in map(document.followed_up, known):
        theirs = {} if isinstance(other, bool) else document.keywords(other)
        same = {key for key in words.keys() & theirs.keys() if _same(words[key], theirs[key])}
        names = words.get("properties", {}), theirs.get("properties", {})
        if "additionalProperties" in same and names[0].keys() == names[1].keys() and "patternProperties" not in words:
            del words["additionalProperties"]
        for key in same & _SEPARATE:
            del words[key]
        if "properties" in words and words.keys() & {"additionalProperties", "unevaluatedProperties"} == set():
            left = {name: one for name, one in names[0].items() if not _same(one, names[1].get(name))}
            words["properties"] = {name: one for name, one in words["properties"].items() if name in left}
    return words


def _same(one: Any, other: Any) -> bool:
    return other is not None and identity(one) == identity(other)
