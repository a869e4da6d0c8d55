"""Every spelling of 'the output has to match this' reaches the engine as the same grammar."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from sapwood.base.grammar import Grammar
from sapwood.text import TextModel
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


WORDS: list[tuple[dict[str, Any], str]] = [
    ({"allowed_token_ids": "xyz"}, "allowed_token_ids"),
    ({"bad_words": ["a", "aa"]}, "bad_words"),
    ({"allowed_token_ids": "abc", "bad_words": ["a"]}, "allowed_token_ids and bad_words"),
    ({"allowed_token_ids": "abc"}, ""),
    ({"bad_words": ["b"]}, ""),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
async def test_words_that_leave_no_first_token_are_refused(http: httpx.AsyncClient, text: TextModel, path: str) -> None:
    for fields, names in WORDS:
        words = fields | (
            {"allowed_token_ids": text.encode(fields["allowed_token_ids"])} if "allowed_token_ids" in fields else {}
        )
        body = {
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "regex": "a[bc]*", **words},
            "/v1/completions": {"prompt": "x", "regex": "a[bc]*", **words},
            "/generate": {"text": "x", "sampling_params": {"regex": "a[bc]*", **words}},
        }[path]
        reply = await http.post(path, json=body)
        assert reply.status_code == (400 if names else 200), reply.text
        if names:
            error = reply.json()["error"]
            assert (
                error["param"] in names
                and f"{names} cannot be used beside" in error["message"]
                and "regex" in error["message"]
            )


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
    schema = {"type": "array", "items": {"$ref": "elsewhere"}}
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    reply = await http.post("/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == "response_format.json_schema.schema"
    assert "'elsewhere'" in error["message"] and not engine.asked


UNIQUE = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}


def say(engine: FakeEngine, text: TextModel, said: str) -> None:
    """Have the engine say this, whatever it is asked."""
    engine.answer = lambda tokens, params: [*text.encode(said), *text.eos_ids[:1]]


@pytest.mark.parametrize(("said", "valid"), [("[1, 2]", True), ("[1, 1]", False), ("[1, 1", False)])
async def test_what_no_grammar_follows_is_checked_at_the_end(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, said: str, valid: bool
) -> None:
    say(engine, text, said)
    chat = {"messages": [{"role": "user", "content": "x"}], "json_schema": UNIQUE}
    checks = []
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "x", "guided_json": UNIQUE})):
        body = {"model": MODEL, **body, "max_tokens": 40}
        checks.append((await http.post(path, json=body)).json()["choices"][0]["schema_check"])
        *_, last, done, _ = (await http.post(path, json={**body, "stream": True})).text.split("\n\n")
        assert done == "data: [DONE]"
        checks.append(json.loads(last.removeprefix("data: "))["choices"][0]["schema_check"])
    body = {"text": "x", "sampling_params": {"json_schema": json.dumps(UNIQUE), "max_new_tokens": 40}}
    checks.append((await http.post("/generate", json=body)).json()["meta_info"]["schema_check"])
    assert all(check["valid"] == valid and bool(check["errors"]) != valid for check in checks), checks
    metrics = (await http.get("/metrics")).text
    assert f'sapwood_schema_checks_total{{result="{"valid" if valid else "invalid"}"}} 5.0' in metrics


async def test_nothing_is_said_where_nothing_is_left_to_check(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel
) -> None:
    say(engine, text, "[1, 1]")
    body = {"model": MODEL, "prompt": "x", "guided_json": {**UNIQUE, "uniqueItems": False}, "max_tokens": 40}
    assert "schema_check" not in (await http.post("/v1/completions", json=body)).json()["choices"][0]


async def test_strict_refuses_what_would_have_to_be_checked(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for strict, status in ((True, 400), (False, 200)):
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": UNIQUE, "strict": strict}}
        body = {"messages": [{"role": "user", "content": "x"}], "response_format": asked}
        reply = await http.post("/v1/chat/completions", json=body)
        assert reply.status_code == status, reply.text
        if strict:
            error = reply.json()["error"]
            assert error["param"] == "response_format.json_schema.schema" and "uniqueItems" in error["message"]
            assert not engine.asked
