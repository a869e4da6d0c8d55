"""Bodies as other servers take them: compressed, with values at the edge of their range, with fields of other engines."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest

from sapwood.config import Config
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
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


@pytest.mark.parametrize(
    "name",
    ["length_penalty", "beam_width", "token_ids_logprob", "logprob_token_ids", "return_hidden_states",
     "repetition_detection", "custom_params", "input_ids", "grammar", "allowed_token_ids", "bad_words"],
)  # fmt: skip
@pytest.mark.parametrize("path", [TEXT, CHAT])
async def test_what_would_change_the_result_is_refused_by_name(http: httpx.AsyncClient, path: str, name: str) -> None:
    body = {"prompt": "x"} if path == TEXT else HELLO
    reply = await http.post(path, json={**body, name: 5})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == name


@pytest.mark.parametrize("name", ["return_entropy", "return_sampling_mask", "max_thinking_tokens", "require_reasoning"])
async def test_the_same_on_generate(http: httpx.AsyncClient, name: str) -> None:
    reply = await http.post("/generate", json={"text": "x", name: 1})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == name


async def test_generate_takes_biases_and_salts(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"text": "x", "sampling_params": {"max_new_tokens": 2, "logit_bias": {"28": 100}}, "cache_salt": "a"}
    assert (await http.post("/generate", json={**body, "extra_key": "b"})).status_code == 200
    asked = engine.asked[-1]
    assert asked.params.logit_bias == {28: 100} and asked.salt == "a\0b"


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
