"""A JSON schema as a document: its subschemas, their references, and one spelling for what drafts spell differently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from sapwood.base.errors import GrammarError

Schema = dict[str, Any] | bool
Keywords = dict[str, Any]

TYPES = ("null", "boolean", "object", "array", "integer", "number", "string")
_ONE = ("additionalProperties", "unevaluatedProperties", "propertyNames", "items", "additionalItems", "unevaluatedItems",
        "contains", "not", "if", "then", "else")  # fmt: skip
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
REFERENCES = ("$ref", "$dynamicRef")
_COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
ANNOTATIONS = frozenset(
    "title description default examples deprecated readOnly writeOnly $comment $schema $id id $anchor $dynamicAnchor $defs "
    "definitions format contentEncoding contentMediaType contentSchema then else minContains maxContains x-guidance "
    "$vocabulary".split()
)
_MOST_DEPTH = 8  # of references to references
_MOST_STEPS = 50_000  # half a second at most
_OLD = ("draft-03", "draft-04", "draft-06", "draft-07")  # in them nothing stands beside a $ref


class Document:
    """One request's schema. Raises GrammarError, naming the place, for what is no schema and for unknown references."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self._bases: dict[int, str] = {}
        self._resources: dict[str, Schema] = {}
        self._anchors: dict[tuple[str, str], Schema] = {}
        self._dynamic: dict[str, dict[str, Schema]] = {}  # by name, then by resource
        self._keywords: dict[int, tuple[dict[str, Any], Keywords]] = {}  # with the schema, which keeps its identity
        self._identities: dict[int, tuple[Keywords, dict[str, frozenset[str]]]] = {}
        self._reached: dict[int, set[int]] = {}
        self._old = isinstance(root, dict) and any(name in str(root.get("$schema", "")) for name in _OLD)
        self._steps = _MOST_STEPS
        self._resources[""] = root
        self._index(root, "", "the schema")
        self._home = self._bases.get(id(root), "")

    def spend(self, steps: int = 1) -> None:
        """Take off the budget that understanding a schema has. Raises GrammarError when it is spent."""
        self._steps -= steps
        if self._steps < 0:
            raise GrammarError("it is too large or too involved, a simpler one is needed")

    def keywords(self, schema: dict[str, Any]) -> Keywords:
        """What a schema says, in the words of draft 2020-12: prefixItems, dependentRequired, numbers as exclusive bounds."""
        known = self._keywords.get(id(schema))
        if known is None:
            known = self._keywords[id(schema)] = schema, _modern(schema, self._old)
        return known[1]

    def identities(self, words: Keywords, key: str) -> frozenset[str]:
        """Those of the values that `const` or `enum` of a schema's keywords names."""
        known = self._identities.get(id(words))
        if known is None:
            known = self._identities[id(words)] = words, {}
        if key not in known[1]:
            known[1][key] = frozenset(map(identity, [words[key]] if key == "const" else words[key]))
        return known[1][key]

    def values(self, schema: Schema, depth: int = 0) -> list[Any] | None:
        """The few values that a schema names, not all of which it has to accept."""
        if isinstance(schema, bool) or depth > _MOST_DEPTH:
            return None
        words = self.keywords(schema)
        if "const" in words:
            return [words["const"]]
        if "enum" in words:
            return list(words["enum"])
        if "type" in words and types_of(words) <= {"boolean", "null"}:
            return [
                *((True, False) if "boolean" in types_of(words) else ()),
                *((None,) if "null" in types_of(words) else ()),
            ]
        return self.values(self.resolve(schema), depth + 1) if "$ref" in words else None

    def resolve(self, schema: dict[str, Any], key: str = "$ref") -> Schema:
        """What a schema's reference stands for."""
        ref = schema[key]
        if not isinstance(ref, str):
            raise GrammarError(f"{key} must be a string")
        base = self._bases.get(id(schema), "")
        where, fragment = (base, ref[1:]) if ref.startswith("#") else urldefrag(urljoin(base, ref))
        target: Any = self._resources.get(where)
        if target is None:
            raise GrammarError(f"$ref {ref!r} leads out of the schema; only references within it are followed")
        if fragment and not fragment.startswith("/"):
            target = self._anchors.get((where, fragment))
        elif fragment:
            target = self._at(target, fragment, where)
        if not isinstance(target, dict | bool):
            raise GrammarError(f"$ref {ref!r} leads to nothing that is a schema")
        return self._outermost(target, fragment) if key == "$dynamicRef" else target

    def _at(self, target: Any, pointer: str, base: str) -> Any:
        for step in unquote(pointer).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict):
                target = target.get(step)
            elif isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            else:
                return None
            if isinstance(target, dict):
                base = self._bases.get(id(target), base)
        if isinstance(target, dict) and id(target) not in self._bases:
            self._index(target, base, pointer)  # a place that is no schema's of its own
        return target

    def reach(self, target: Schema) -> set[int]:
        """All schemas that one consists of, references followed."""
        if isinstance(target, bool):
            return set()
        if id(target) not in self._reached:
            found: set[int] = set()
            waiting: list[Schema] = [target]
            while waiting:
                one = waiting.pop()
                if isinstance(one, dict) and id(one) not in found:
                    found.add(id(one))
                    waiting += [inner for _, inner in subschemas(one)]
                    waiting += [self.resolve(one, key) for key in REFERENCES if key in one]
            self.spend(len(found) // 8)
            self._reached[id(target)] = found
        return self._reached[id(target)]

    def followed_up(self, schema: Schema) -> Schema:
        """What a schema refers to, where it is nothing but a reference."""
        while isinstance(schema, dict) and self.keywords(schema).keys() - ANNOTATIONS == {"$ref"}:
            target = self.resolve(schema)
            if target is schema:
                break
            schema = target
        return schema

    def _outermost(self, target: Schema, name: str) -> Schema:
        """What a dynamic reference stands for: the anchor of that name in the outermost resource, which is often the root's."""
        if not isinstance(target, dict) or target.get("$dynamicAnchor") != name:
            return target
        anchors = self._dynamic[name]
        if len(anchors) == 1:
            return target
        if self._home in anchors:
            return anchors[self._home]
        raise GrammarError(
            f"what $dynamicRef {name!r} stands for depends on the value; such references are not followed"
        )

    def _index(self, schema: Any, base: str, where: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise GrammarError(f"{where}: a schema is an object or a boolean, got {_short(schema)}")
        named = schema.get("$id", schema.get("id") if self._old else None)
        if isinstance(named, str) and not (self._old and named.startswith("#")):
            base = urldefrag(urljoin(base, named))[0]
            self._resources.setdefault(base, schema)
        self._bases[id(schema)] = base
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(name := schema.get(key), str):
                self._anchors[base, name] = schema
        if isinstance(name := schema.get("$dynamicAnchor"), str):
            self._dynamic.setdefault(name, {})[base] = schema
        if isinstance(named, str) and self._old and named.startswith("#"):
            self._anchors[base, named[1:]] = schema
        for key, inner in subschemas(schema):
            self._index(inner, base, f"{where}, {key}" if where != "the schema" else key)


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(Place, subschema). Raises GrammarError where a keyword holds no schemas."""
    for key in _ONE:
        if key in schema and not (key == "items" and isinstance(schema[key], list)):
            yield key, schema[key]
    for key in (*_SEVERAL, "items"):
        if key in schema and (key != "items" or isinstance(schema[key], list)):
            yield from ((f"{key}[{index}]", inner) for index, inner in enumerate(_typed(schema, key, list)))
    for key in _NAMED:
        if key in schema:
            yield from ((f"{key}.{name}", inner) for name, inner in _typed(schema, key, dict).items())
    for name, inner in _typed(schema, "dependencies", dict).items():
        if not isinstance(inner, list):
            yield f"dependencies.{name}", inner


def identity(value: Any) -> str:
    """Equal for values that are the same JSON, as schemas see it: 1 is 1.0, true is not 1."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int | float):
        return str(int(value)) if value == value and abs(value) != float("inf") and value == int(value) else repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(identity, value)) + "]"
    return "{" + ",".join(f"{json.dumps(key)}:{identity(value[key])}" for key in sorted(value)) + "}"


def kinds(value: Any) -> frozenset[str]:
    """The types that a value has; a whole number has two."""
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"integer", "number"} if value.is_integer() else {"number"})
        case str():
            return frozenset({"string"})
        case list():
            return frozenset({"array"})
    return frozenset({"object"})


def types_of(keywords: Keywords) -> frozenset[str]:
    """The types that a schema names, all without any."""
    given = keywords.get("type", TYPES)
    return frozenset([given] if isinstance(given, str) else given)


def _modern(schema: dict[str, Any], old: bool) -> Keywords:
    if old and "$ref" in schema:
        return {"$ref": schema["$ref"]}
    words = dict(schema)
    if isinstance(words.get("items"), list):
        words["prefixItems"] = words.pop("items")
        if "additionalItems" in words:
            words["items"] = words["additionalItems"]
    words.pop("additionalItems", None)
    for name, inner in _typed(words, "dependencies", dict).items():
        key = "dependentRequired" if isinstance(inner, list) else "dependentSchemas"
        words[key] = {**_typed(words, key, dict), name: inner}
    words.pop("dependencies", None)
    for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(words.get(exclusive), bool) and words.pop(exclusive) and plain in words:
            words[exclusive] = words.pop(plain)
    for key in _COUNTS:
        if isinstance(count := words.get(key), float) and count.is_integer():
            words[key] = int(count)
        if key in words and (isinstance(words[key], bool) or not isinstance(words[key], int) or words[key] < 0):
            raise GrammarError(f"{key} must be a whole number that is not negative, got {_short(words[key])}")
    _check(words)
    return words


def _check(words: Keywords) -> None:
    """The shapes that are relied upon."""
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        if key in words and (isinstance(words[key], bool) or not isinstance(words[key], int | float)):
            raise GrammarError(f"{key} must be a number, got {_short(words[key])}")
    named = words.get("type", [])
    if unknown := [
        one for one in ([named] if isinstance(named, str) else _typed(words, "type", list)) if one not in TYPES
    ]:
        raise GrammarError(f"type must be of {', '.join(TYPES)}, got {_short(unknown[0])}")
    for key in ("enum", "required"):
        _typed(words, key, list)
    for key in ("pattern", "format"):
        if key in words and not isinstance(words[key], str):
            raise GrammarError(f"{key} must be a string, got {_short(words[key])}")
    lists = [words.get("required", []), *_typed(words, "dependentRequired", dict).values()]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise GrammarError("required must be a list of names")


def _typed(words: dict[str, Any], key: str, kind: type) -> Any:
    value = words.get(key, kind())
    if not isinstance(value, kind):
        raise GrammarError(f"{key} must be {'an object' if kind is dict else 'a list'}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    return json.dumps(value)[:60]
