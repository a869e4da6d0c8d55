"""Schemas rewritten, and values checked, against the jsonschema package."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar import Constraint
from sapwood.grammar.end_check import EndCheck
from sapwood.grammar.schema import SchemaCheck, rewrite
from tests.grammar.strategies import SCHEMAS, VALUES

jsonschema = pytest.importorskip("jsonschema")


Begin = Callable[..., Constraint]


def writes(begin: Begin, schema: Any, value: Any) -> bool:
    """Whether the grammar of a schema lets a value be written, and end there."""
    matcher = begin(Grammar.json(schema), compact_json=True).compiled.matcher.deep_copy()
    text = json.dumps(value, separators=(",", ":"))
    tokens = begin(Grammar.json()).compiled.vocabulary.tokenizer.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def valid(schema: Any, value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@hypothesis.given(SCHEMAS, st.lists(VALUES, min_size=4, max_size=12))
@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_a_rewriting_keeps_the_meaning(schema: Any, values: list[Any]) -> None:
    """It accepts nothing that the schema refuses, unless it says that something is left to check."""
    check, rewritten = SchemaCheck(schema), rewrite(schema)
    for value in values:
        want, kept = valid(schema, value), valid(rewritten.schema, value)
        assert check.value(value).valid == want, "the check at the end"
        assert kept or not want, "a value is lost"
        assert want or not kept or rewritten.unchecked, "a value was refused"


P = {name: {"type": "integer"} for name in "abc"}
TREE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {
    "anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}], "type": ["object", "null"]}}}  # fmt: skip
EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"

# What grammars follow to the letter: a schema, some values that it accepts, some that it refuses.
EXACT: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "not of a value": ({"enum": ["a", "b", "c"], "not": {"const": "a"}}, ["b", "c"], ["a"]),
    "not of some texts": ({"type": "string", "not": {"enum": ["a", "ab", ""]}}, ["b", "abc"], ["a", "ab", ""]),
    "not of a number": ({"type": "integer", "not": {"const": 3}}, [2, 4, -3], [3]),
    "not of a type": ({"type": ["string", "integer"], "not": {"type": "integer"}}, ["1"], [1]),
    "not of names": ({"type": "object", "properties": P, "not": {"required": ["a"]}}, [{"b": 1}, {}], [{"a": 1}]),
    "oneOf by a value": ({"oneOf": [{"type": "object", "properties": {"kind": {"const": one}}, "required": ["kind"]}
                                    for one in "xy"]}, [{"kind": "x"}, {"kind": "y"}], [{"kind": "z"}, {}]),
    "oneOf by names": ({"oneOf": [{"type": "object", "properties": P, "required": [one]} for one in "ab"]},
                       [{"a": 1}, {"b": 1, "c": 2}], [{"a": 1, "b": 1}, {}]),
    "oneOf by bounds": ({"oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 3}]},
                        [2, 6], [3, 4, 5]),
    "if": ({"type": "object", "properties": {"c": {"type": "string"}, "zip": {"type": "string"}}, "required": ["c"],
            "if": {"properties": {"c": {"const": "US"}}}, "then": {"required": ["zip"]},
            "else": {"properties": {"zip": False}}},
           [{"c": "US", "zip": "1"}, {"c": "CH"}, {"c": "USA"}], [{"c": "US"}, {"c": "CH", "zip": "1"}]),
    "conditions of one name": (
        {"type": "object", "properties": {"kind": {"enum": ["a", "b", "c", "d"]}, **P}, "required": ["kind"],
         "allOf": [{"if": {"properties": {"kind": {"const": one}}}, "then": {"required": [one]}} for one in "abc"]},
        [{"kind": "a", "a": 1}, {"kind": "c", "c": 1}, {"kind": "d"}], [{"kind": "a", "b": 1}, {"kind": "c"}]),
    "dependentRequired": ({"type": "object", "properties": P, "dependentRequired": {"b": ["a"]}},
                          [{}, {"a": 1}, {"a": 1, "b": 1}], [{"b": 1}]),
    "dependencies": ({"type": "object", "properties": P, "dependencies": {"b": ["a"], "c": {"properties": {"a": False}}}},
                     [{"a": 1, "b": 1}, {"c": 1}], [{"b": 1}]),
    "uniqueItems of few": ({"type": "array", "items": {"enum": ["r", "g", "b"]}, "uniqueItems": True, "minItems": 1},
                           [["r", "g"], ["b"]], [["r", "r"], []]),
    "names of a list": ({"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": P["a"]},
                        [{"x": 1}, {}], [{"z": 1}, {"x": "1"}]),
    "names of an expression": ({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, [{"x": 1}], [{"X": 1}]),
    "contains": ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 1}}, [[1], [2, 1, 3]], [[], [2]]),
    "unevaluatedProperties": ({"$defs": {"a": {"properties": {"t": {"const": "a"}}}}, "type": "object",
                               "allOf": [{"$ref": "#/$defs/a"}], "properties": {"u": {}}, "unevaluatedProperties": False},
                              [{"u": 1}, {}], [{"z": 1}, {"t": "b"}]),
    "counts beside names": ({"type": "object", "properties": P, "minProperties": 1}, [{"a": 1}, {"z": 1}], [{}]),
    "counts of closed names": ({"type": "object", "properties": P, "additionalProperties": False, "maxProperties": 1},
                               [{}, {"b": 1}], [{"a": 1, "b": 1}]),
    "recursion beside a type": ({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
                                [{"v": 1, "next": {"next": None}}], [{"next": 3}, {"next": {"next": 3}}]),
    "an e-mail of zod": ({"type": "string", "format": "email", "pattern": EMAIL}, ["a.b@c.de"], ["a..b@c.de", ".a@c.de"]),
    "an old draft": ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3,
                      "exclusiveMinimum": True}, [4], [3]),
}  # fmt: skip

# What restricts nothing, as generators of schemas write it, and bounds of the types of numbers.
HARMLESS: list[Any] = [
    {"uniqueItems": False}, {"not": False}, {"propertyNames": {"type": "string"}}, {"unevaluatedProperties": True},
    {"dependentRequired": {}}, {"if": {"required": ["a"]}}, {"then": False}, {"contains": True, "minContains": 0},
    {"anyOf": [{"not": {}}, {"type": "string"}]}, {"type": "string", "format": "binary"}, {"maxLength": 2**31 - 1},
    {"minimum": -(2**63)}, {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}, {"minItems": 1.0},
    {"minimum": -3.4028234663852886e38, "maximum": 1.7976931348623157e308}, {"exclusiveMinimum": 5e-324},
]  # fmt: skip

# What only the check at the end sees: a schema, a value that it accepts and a grammar too, one that only the grammar accepts.
CHECKED: dict[str, tuple[Any, Any, Any]] = {
    "uniqueItems": ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["a", "b"], ["a", "a"]),
    "pattern": ({"type": "string", "pattern": "^(?=.*[A-Z]).{3}$"}, "aAb", "aab"),
    "contains": ({"type": "array", "contains": {"const": 1}, "minContains": 2}, [1, 1], [1]),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, 1, 2),
    "maxProperties": ({"type": "object", "properties": P, "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1}),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(begin: Begin, name: str) -> None:
    schema, good, bad = EXACT[name]
    assert rewrite(schema).unchecked == ()
    assert all(valid(schema, one) for one in good), "the case itself" if "$schema" not in schema else ""
    for value in good:
        assert writes(begin, schema, value), value
    for value in bad:
        assert not writes(begin, schema, value), value


@pytest.mark.parametrize("schema", HARMLESS, ids=json.dumps)
def test_what_says_nothing_is_no_obstacle(begin: Begin, schema: Any) -> None:
    assert rewrite(schema).unchecked == ()
    assert any(writes(begin, schema, value) for value in (3, "a", ["a"], {"b": 1}))


@pytest.mark.parametrize("name", CHECKED)
def test_the_rest_is_checked_at_the_end(begin: Begin, name: str) -> None:
    schema, good, bad = CHECKED[name]
    assert name in rewrite(schema).unchecked
    assert writes(begin, schema, good) and writes(begin, schema, bad)
    check = EndCheck(Grammar.json(schema))
    assert check(json.dumps(good)).valid
    finding = check(json.dumps(bad))
    assert not finding.valid and finding.errors[0].startswith("$")
    assert not check(json.dumps(good)[:-1] + " ").valid or isinstance(good, int), "cut off"


def test_a_large_union_is_told_apart_by_its_discriminator() -> None:
    cases = [{"type": "object", "properties": {"kind": {"const": f"k{n}"}}, "required": ["kind"]} for n in range(300)]
    assert rewrite({"oneOf": cases}).unchecked == ()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("^(a+)+$", "a" * 5000 + "b"), ("(?=(a|a)*b)(a|a)*$", "a" * 20000), ("((a{0,900}){0,900}){0,900}b", "a" * 3000)],
)
def test_an_expression_cannot_hold_up_the_check(pattern: str, text: str) -> None:
    finding = SchemaCheck({"pattern": pattern}).value(text)
    assert not finding.valid and "too many steps" in finding.errors[0]


def test_hostile_schemas_are_refused_soon() -> None:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(9):
        inner = {"if": inner, "then": inner, "else": inner}
    for schema in (inner, json.loads('{"not":' * 900 + "{}" + "}" * 900)):
        with pytest.raises(GrammarError, match="too"):
            rewrite(schema)


def test_structures_of_a_tag_are_checked_each() -> None:
    unique = {"type": "array", "uniqueItems": True}
    tag = {"structures": [{"begin": "<f>", "schema": unique, "end": "</f>"}], "triggers": ["<f"]}
    check = EndCheck(Grammar(kind="structural_tag", text=json.dumps(tag)))
    assert check("x <f>[1, 2]</f> y <f>[3]</f>").valid and check("nothing").valid
    assert not check("<f>[1]</f> <f>[1, 1]</f>").valid and not check("<f>[1").valid
    with pytest.raises(GrammarError, match="taken apart"):
        EndCheck(Grammar.parts({"json": unique}))
