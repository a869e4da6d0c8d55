"""Bodies as other servers take them: compressed, with values at the edge of their range, with fields of other engines."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import msgspec
import pytest

from sapwood.base.sampling import SamplingParams
from sapwood.config import Config
from sapwood.server import generation, refusals
from sapwood.server.openai.protocol import ChatRequest, CompletionRequest
from sapwood.server.refusals import Table
from sapwood.server.sglang.protocol import REFUSED, GenerateRequest
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine
from tests.waiting import within

pytestmark = pytest.mark.anyio
TEXT, CHAT, NATIVE = "/v1/completions", "/v1/chat/completions", "/generate"
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda raw: zlib.compress(raw, wbits=-15)),
        ("identity", bytes),
    ],
)
async def test_compressed_bodies_are_read(http: httpx.AsyncClient, coding: str, pack: Any) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    reply = await http.post(CHAT, content=pack(json.dumps(HELLO).encode()), headers=headers)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("coding", "raw", "status", "says"),
    [
        ("br", b"x", 415, "'br' is not supported"),
        ("gzip", b"no gzip", 400, "not gzip"),
        ("gzip", gzip.compress(json.dumps(HELLO).encode())[:-9], 400, "cut off"),
        ("gzip", gzip.compress(b" " * (Config().server.max_body_bytes + 1)), 413, "larger than the limit"),
    ],
    ids=["another coding", "not gzip", "cut off", "too large"],  # not the bytes: gzip writes the time into them
)
async def test_what_cannot_be_unpacked(
    http: httpx.AsyncClient, coding: str, raw: bytes, status: int, says: str
) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    reply = await http.post(CHAT, content=raw, headers=headers)
    assert reply.status_code == status and says in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0},
        {"top_p": 0, "temperature": 0},
        {"model": ""},
        {"logprobs": False, "top_logprobs": 0},
        {"min_new_tokens": 1},
        {"no_stop_trim": True, "stop": "x"},
        {"stop_regex": "[0-9]+x"},
        {"length_penalty": 1.0},
    ],
    ids=str,
)
async def test_values_that_others_take(http: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    reply = await http.post(CHAT, json=HELLO | fields)
    assert reply.status_code == 200, reply.text


ROUTES: dict[str, tuple[Table, dict[str, Any], type[msgspec.Struct]]] = {
    CHAT: (refusals.CHAT, HELLO, ChatRequest),
    TEXT: (refusals.COMPLETIONS, {"prompt": "x", "max_tokens": 2}, CompletionRequest),
    NATIVE: (REFUSED, {"text": "x", "sampling_params": {"max_new_tokens": 2}}, GenerateRequest),
}


@pytest.mark.parametrize("path", ROUTES)
async def test_what_would_change_the_result_is_refused_by_name(http: httpx.AsyncClient, path: str) -> None:
    table, body, declared = ROUTES[path]
    assert not table.keys() & set(declared.__struct_fields__)
    for name, refused in table.items():
        short = len(refused.harmless) < 3  # there zero and false ask for something too
        for value in [5, {"a": 1}, *([0, False] if short else [True])]:
            reply = await http.post(path, json={**body, name: value})
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter"), value
            assert refused.instead in error["message"]


@pytest.mark.parametrize("path", ROUTES)
async def test_fields_of_others_that_ask_for_nothing_are_taken(http: httpx.AsyncClient, path: str) -> None:
    table, body, _ = ROUTES[path]
    for number in range(max(len(refused.harmless) for refused in table.values())):
        harmless = {name: refused.harmless[min(number, len(refused.harmless) - 1)] for name, refused in table.items()}
        reply = await http.post(path, json=harmless | body)
        assert reply.status_code == 200, reply.text


async def test_what_sampling_params_refuse(http: httpx.AsyncClient) -> None:
    for name, refused in refusals.NATIVE_SAMPLING.items():
        for value, status in [(5, 400), *((value, 200) for value in refused.harmless if not isinstance(value, list))]:
            body = {"text": "x", "sampling_params": {"max_new_tokens": 2, name: value}}
            reply = await http.post(NATIVE, json=body)
            assert reply.status_code == status, value
            assert status == 200 or reply.json()["error"]["param"] == name


@pytest.mark.parametrize("path", ROUTES)
async def test_as_many_outputs_as_asked_for_in_any_way(http: httpx.AsyncClient, path: str) -> None:
    _, body, _ = ROUTES[path]
    fields: dict[str, Any] = {} if path == NATIVE else {"n": 2, "best_of": 2}
    assert (await http.post(path, json=body | fields)).status_code == 200
    if fields:
        reply = await http.post(path, json=body | fields | {"best_of": 3})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "best_of"


@pytest.mark.parametrize("path", [TEXT, NATIVE])
async def test_a_thousand_prompts(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    name = "text" if path == NATIVE else "prompt"
    body = {"sampling_params": {"max_new_tokens": 1}} if path == NATIVE else {"max_tokens": 1}
    reply = await http.post(path, json=body | {name: ["the cat"] * 1024})
    assert reply.status_code == 200 and len(engine.asked) == 1024
    reply = await http.post(path, json=body | {name: ["the cat"] * 1025})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == name
    assert len(engine.asked) == 1024


async def test_a_missing_field_is_named(http: httpx.AsyncClient) -> None:
    error = (await http.post("/detokenize", json={})).json()["error"]
    assert (error["param"], error["message"]) == ("tokens", "tokens is missing.")


@pytest.mark.parametrize("path", ROUTES)
async def test_salts_keep_prefixes_apart(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    _, body, _ = ROUTES[path]
    pairs = [{}, {"cache_salt": "a"}, {"extra_key": "a"}, {"cache_salt": "a", "extra_key": "b"},
             {"cache_salt": "a\0:b"}, {"cache_salt": "a\0", "extra_key": "b"}]  # fmt: skip
    for pair in pairs:
        assert (await http.post(path, json=body | pair)).status_code == 200
    salts = [asked.salt for asked in engine.asked]
    assert salts[:2] == ["", "a"] and len(set(salts)) == len(pairs)


async def test_generate_takes_biases_and_a_key_for_each_prompt(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"text": ["x", "y"], "sampling_params": {"max_new_tokens": 2, "logit_bias": {"28": 100}}}
    assert (await http.post(NATIVE, json={**body, "extra_key": ["a", "b"]})).status_code == 200
    first, second = engine.asked
    assert first.params.logit_bias == {28: 100} and first.salt != second.salt
    assert (await http.post(NATIVE, json={**body, "extra_key": ["a"]})).json()["error"]["param"] == "extra_key"


@pytest.mark.parametrize("path", ROUTES)
async def test_allowed_tokens_and_bad_words(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, path: str
) -> None:
    _, body, _ = ROUTES[path]
    hen, spaced = (tuple(text.encode(written)) for written in ("the hen", " the hen"))
    assert len(hen) > 1
    fields = {"allowed_token_ids": [7, 5], "bad_words": ["the hen", " the hen "]}
    asked = body | {"sampling_params": fields} if path == NATIVE else body | fields
    assert (await http.post(path, json=asked)).status_code == 200
    params = engine.asked[-1].params
    assert params.allowed_token_ids == (7, 5) and params.forbidden == (hen, spaced)
    letter = text.encode("a")
    fields = {"allowed_token_ids": letter, "bad_words": ["a"]}
    asked = body | {"sampling_params": fields} if path == NATIVE else body | fields
    error = (await http.post(path, json=asked)).json()["error"]
    assert error["param"] == "allowed_token_ids" and "bad_words" in error["message"]


async def test_a_stop_expression_ends_the_text(http: httpx.AsyncClient) -> None:
    reply = await http.post(TEXT, json={"prompt": "x", "max_tokens": 40, "stop_regex": "s[aeiou]t"})
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == "s[aeiou]t"
    assert "The cat" in choice["text"] and "sat" not in choice["text"]
    refused = await http.post(TEXT, json={"prompt": "x", "stop_regex": "(?=a)"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "stop_regex"


async def test_logprobs_of_parts_of_characters(http: httpx.AsyncClient) -> None:
    body = {"prompt": "Café 👩 déjà", "echo": True, "logprobs": 0, "max_tokens": 0}
    (choice,) = (await http.post(TEXT, json=body)).json()["choices"]
    found = choice["logprobs"]
    for token, place in zip(found["tokens"], found["text_offset"], strict=True):
        assert "\ufffd" in token or choice["text"][place : place + len(token)] == token


PROMPTS = ["a", "b", "c d"]
MANY: dict[str, dict[str, Any]] = {
    TEXT: {"prompt": PROMPTS, "max_tokens": 2, "bad_words": ["the hen"]},
    CHAT: {**HELLO, "n": 3, "seed": 7, "logit_bias": {"7": 1.0}},
    NATIVE: {"text": PROMPTS, "sampling_params": {"max_new_tokens": 2, "bad_words": ["the hen"]}},
}


@pytest.mark.parametrize("path", MANY)
async def test_what_many_outputs_share_is_checked_once(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    checked: list[SamplingParams] = []
    check = SamplingParams.check

    def counted(self: SamplingParams, **bounds: Any) -> SamplingParams:
        checked.append(self)
        return check(self, **bounds)

    monkeypatch.setattr(SamplingParams, "check", counted)
    reply = await http.post(path, json=MANY[path])
    assert reply.status_code == 200 and len(engine.asked) == 3 and len(checked) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_many_outputs_begin_a_few_at_a_time(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Others come in between; one that is refused at the end refuses all, though the first have been answered by then."""
    monkeypatch.setattr(generation, "TURN_SECONDS", -1.0)
    begun: list[int] = []

    async def other() -> None:
        while not begun or begun[-1] < 300:
            begun.append(len(engine.asked))
            await asyncio.sleep(0)

    watching = asyncio.create_task(other())
    body = {"prompt": [[5]] * 300, "max_tokens": 1, "stream": stream}
    reply = await http.post(TEXT, json=body)
    assert reply.status_code == 200
    await within(watching)
    assert len(set(begun)) > 100
    late = await http.post(TEXT, json={**body, "prompt": [*[[5]] * 300, [5] * 600]})
    assert late.status_code == 400 and late.json()["error"]["code"] == "context_length_exceeded"
    assert engine.running == 0
