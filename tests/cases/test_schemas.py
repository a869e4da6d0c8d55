"""Schemas and choices as generators of schemas, agents and people write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar import Constraint

Begin = Callable[..., Constraint]


def takes(begin: Begin, grammar: Grammar, text: str) -> bool:
    """Whether a grammar lets the text be written, and end there."""
    compiled = begin(grammar, compact_json=True).compiled
    tokens = compiled.vocabulary.tokenizer.tokenize_str(text)
    matcher = compiled.matcher.deep_copy()
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


SAFE = 2**53 - 1
SCHEMAS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "a bound beyond 32 bits": ({"type": "integer", "maximum": 20_000_000_000}, [0, 20_000_000_000], [20_000_000_001]),
    "the integers of JavaScript": ({"type": "integer", "minimum": -SAFE, "maximum": SAFE}, [SAFE, -SAFE], [SAFE + 1]),
    "no schema": ({}, [None, [], {"a": [1.5, "x"]}, ""], []),
    "true": (True, [None, 1], []),
    "unions of names at the top": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
         "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "additionalProperties": False},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}], [{}, {"c": 1}],
    ),
    "a union with what nothing is": ({"anyOf": [{"not": {}}, {"type": "string"}]}, ["x"], [1]),
    "a conditional at the root": (
        {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "x": {"type": "integer"}},
         "required": ["kind"], "additionalProperties": False,
         "if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["x"]}},
        [{"kind": "a", "x": 1}, {"kind": "b"}], [{"kind": "a"}],
    ),
    "texts that need escapes": ({"enum": ['a"b', "c\\d", "e\nf", "é"]}, ['a"b', "c\\d", "e\nf", "é"], ["ab"]),
    "nothing but null": ({"type": "null"}, [None], [0, ""]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas(begin: Begin, name: str) -> None:
    schema, good, bad = SCHEMAS[name]
    for values, wanted in ((good, True), (bad, False)):
        for value in values:
            written = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            assert takes(begin, Grammar.json(schema), written) == wanted, value


FORMATS = """password binary byte path file-path directory-path regex uri-reference iri url urn decimal int32 int64 uint8
float double color markdown html text multiline json json-string idn-email idn-hostname base64 base64url phone tel slug cuid
currency country-code""".split()


@pytest.mark.parametrize("format", FORMATS)
def test_formats_that_nobody_defines_say_nothing(begin: Begin, format: str) -> None:
    assert takes(begin, Grammar.json({"type": "string", "format": format}), '"any text"')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"type": 5},
        {"properties": []},
        {"required": "a"},
        {"required": None},
        {"enum": []},
        {"pattern": "("},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"minimum": "1"},
        {"anyOf": {}},
        5,
        [],
    ],
    ids=json.dumps,
)
def test_schemas_that_are_wrong_never_mean_anything_goes(begin: Begin, schema: Any) -> None:
    with pytest.raises(GrammarError):
        begin(Grammar.json(schema))


CHOICES: dict[str, list[str]] = {
    "line breaks": ["a\nb", "a\r\nb", "a"],
    "NUL": ["a\0b", "a"],
    "quotes": ['"', "'", '"""', "`"],
    "signs of expressions": ["a.b", "a|b", "(a)", "[a]", "a{2}", "^a$", "\\d", "a*"],
    "signs of grammars": ["::=", "/a/", "<a>", "%x", "start: a"],
    "one begins another": ["a", "ab", "abc"],
    "white space": [" ", "  ", "\t"],
    "other scripts": ["日本語", "é", "👩‍👩‍👧"],
    "JSON": ['{"a": 1}', "[]", "null"],
    "one": ["yes"],
    "twice the same": ["yes", "yes"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_texts(begin: Begin, name: str) -> None:
    grammar = Grammar.choice(CHOICES[name])
    for choice in CHOICES[name]:
        assert takes(begin, grammar, choice), choice
    for other in ("", "x", CHOICES[name][-1] + "x"):
        assert other in CHOICES[name] or not takes(begin, grammar, other), other
