"""Every spelling of 'the output has to match this' reaches the engine as the same grammar."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from sapwood.base.grammar import Grammar
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
TEXT = json.dumps(SCHEMA)
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
RULES = 'root ::= "a" [0-9]+'

SPELLINGS: list[tuple[dict[str, Any], Grammar | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "guided_json": None, "structured_outputs": {}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar.json()),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Grammar.json(SCHEMA)),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
     Grammar.json(SCHEMA)),
    ({"response_format": {"type": "structural_tag", **TAG}}, Grammar(kind="structural_tag", text=json.dumps(TAG))),
    ({"structured_outputs": {"json": SCHEMA}}, Grammar.json(SCHEMA)),
    ({"structured_outputs": {"json": TEXT}}, Grammar.json(TEXT)),
    ({"structured_outputs": {"json_object": True}}, Grammar.json()),
    ({"structured_outputs": {"regex": "a+"}}, Grammar.regex("a+")),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, Grammar.choice(["yes", "no"])),
    ({"structured_outputs": {"grammar": RULES}}, Grammar.rules(RULES)),
    ({"structured_outputs": {"grammar": "start: /a/"}}, Grammar(kind="lark", text="start: /a/")),
    ({"structured_outputs": {"structural_tag": TAG}}, Grammar(kind="structural_tag", text=json.dumps(TAG))),
    ({"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
     Grammar.json({"x-guidance": {"whitespace_flexible": False}})),
    ({"structured_outputs": {"json": {"properties": {"a": {}}}, "disable_additional_properties": True}},
     Grammar.json({"properties": {"a": {}}, "additionalProperties": False})),
    ({"guided_json": SCHEMA}, Grammar.json(SCHEMA)),
    ({"guided_regex": "a+"}, Grammar.regex("a+")),
    ({"guided_choice": ["yes", "no"]}, Grammar.choice(["yes", "no"])),
    ({"guided_grammar": RULES}, Grammar.rules(RULES)),
    ({"json_schema": TEXT}, Grammar.json(TEXT)),
    ({"regex": "a+"}, Grammar.regex("a+")),
    ({"ebnf": RULES}, Grammar.rules(RULES)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "grammar"), SPELLINGS)
async def test_spellings(
    http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], grammar: Grammar | None
) -> None:
    bodies = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"prompt": "x"},
    }
    for path, body in bodies.items():
        reply = await http.post(path, json={"model": MODEL, **body, **fields})
        assert reply.status_code == 200, reply.text
        assert engine.asked[-1].params.grammar == grammar


async def test_native_spellings(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    samplings = [{"json_schema": TEXT}, {"regex": "a+"}, {"ebnf": RULES}, {"structural_tag": json.dumps(TAG)}, {}]
    reply = await http.post("/generate", json={"text": ["x"] * 5, "sampling_params": samplings})
    assert reply.status_code == 200, reply.text
    kinds = [asked.params.grammar and asked.params.grammar.kind for asked in engine.asked]
    assert kinds == ["json_schema", "regex", "gbnf", "structural_tag", None]


async def test_the_openai_client(client: AsyncOpenAI, engine: FakeEngine) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "x"}],
        n=2,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    )
    assert [asked.params.grammar for asked in engine.asked] == [Grammar.json(SCHEMA)] * 2


async def test_two_at_once_are_named(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"prompt": "x", "response_format": {"type": "json_object"}, "guided_regex": "a"}
    error = (await http.post("/v1/completions", json=body)).json()["error"]
    assert "response_format" in error["message"] and "guided_regex" in error["message"]
    assert not engine.asked
    body = {"text": "x", "sampling_params": {"json_schema": "{}", "regex": "a"}}
    error = (await http.post("/generate", json=body)).json()["error"]
    assert "json_schema" in error["message"] and "regex" in error["message"]


async def test_a_bad_schema_is_refused_before_anything_is_streamed(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    schema = {"type": "array", "uniqueItems": True}
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    reply = await http.post("/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == "response_format.json_schema.schema"
    assert "uniqueItems" in error["message"] and not engine.asked
