"""What answers say besides their text: logprobs, indices and ends, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from sapwood.text import TextModel
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "x"}]}


def chunks(reply: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("count", [1, 10])
async def test_every_alternative_inside_a_character_is_told(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, count: int
) -> None:
    """Tokens that are parts of characters look alike as text; none of them hides another."""
    engine.answer = lambda prompt, params: text.encode("é👩 déjà")
    reply = await http.post(TEXT, json={"prompt": "x", "max_tokens": 8, "logprobs": count})
    (choice,) = reply.json()["choices"]
    assert all(len(alternatives) >= count for alternatives in choice["logprobs"]["top_logprobs"])
    chat = await http.post(CHAT, json=HELLO | {"max_tokens": 8, "logprobs": True, "top_logprobs": count})
    (choice,) = chat.json()["choices"]
    assert [len(token["top_logprobs"]) for token in choice["logprobs"]["content"]] == [count] * 8


@pytest.mark.parametrize("chunk", [1, 3])
async def test_tokens_that_a_stop_string_holds_back_have_one_entry_each(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, chunk: int
) -> None:
    engine.chunk, tokens = chunk, text.encode("The cat sat on")
    engine.answer = lambda prompt, params: tokens
    body = HELLO | {"max_tokens": len(tokens), "stop": "sat onward", "logprobs": True, "top_logprobs": 0}
    whole = (await http.post(CHAT, json=body)).json()["choices"][0]
    told = [one["choices"][0] for one in chunks(await http.post(CHAT, json=body | {"stream": True}))]
    entries = [entry for one in told if one.get("logprobs") for entry in one["logprobs"]["content"]]
    assert [entry["bytes"] for entry in whole["logprobs"]["content"]] == [[*text.token_bytes(id)] for id in tokens]
    assert entries == whole["logprobs"]["content"]
    assert "".join(one["delta"].get("content") or "" for one in told) == whole["message"]["content"] == "The cat sat on"


@pytest.mark.parametrize("route", [TEXT, CHAT])
@pytest.mark.parametrize("chunk", [1, 1000])
async def test_each_of_several_outputs_begins_and_ends_once(
    http: httpx.AsyncClient, engine: FakeEngine, route: str, chunk: int
) -> None:
    engine.chunk = chunk
    body = {"prompt": ["x", "y"], "n": 2, "max_tokens": 99} if route == TEXT else HELLO | {"n": 3}
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    *told, last = chunks(await http.post(route, json=asked))
    assert (last["choices"], last["usage"] is None) == ([], False)
    assert all(one["usage"] is None for one in told)
    choices = [choice for one in told for choice in one["choices"]]
    indices = range(4 if route == TEXT else 3)
    assert {choice["index"] for choice in choices} == {*indices}
    for index in indices:
        mine = [choice for choice in choices if choice["index"] == index]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]
        assert mine[-1]["finish_reason"]
        if route == CHAT:
            assert [choice["delta"].get("role") for choice in mine].count("assistant") == 1


async def test_a_held_back_text_makes_no_empty_chunks(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel
) -> None:
    engine.answer = lambda prompt, params: text.encode("The cat sat on")
    body = {"prompt": "x", "max_tokens": 8, "stop": "The cat sat on the mat", "stream": True}
    told = [choice for one in chunks(await http.post(TEXT, json=body)) for choice in one["choices"]]
    assert all(choice["text"] or choice["finish_reason"] for choice in told)
