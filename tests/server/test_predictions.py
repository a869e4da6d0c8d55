"""Predicted outputs over HTTP: what reaches the engine, and what usage tells."""

from __future__ import annotations

from typing import Any

import httpx
import httpx2
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from starlette.applications import Starlette

from sapwood.base.drafts import Drafted
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

SAID = "The cat sat on the mat — naïvely."  # what the engine says
HELLO = [{"role": "user", "content": "hello"}]
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
RESPONSES, MESSAGES, OLLAMA_CHAT, OLLAMA = "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        CHAT: {"messages": HELLO, "max_tokens": 100},
        COMPLETIONS: {"prompt": "hello", "max_tokens": 100},
        GENERATE: {"text": "hello", "sampling_params": {"max_new_tokens": 100}},
        RESPONSES: {"input": "hello", "max_output_tokens": 100},
        MESSAGES: {"model": MODEL, "messages": HELLO, "max_tokens": 100},
        OLLAMA_CHAT: {"model": MODEL, "messages": HELLO, "stream": False},
        OLLAMA: {"model": MODEL, "prompt": "hello", "stream": False},
    }[path]
    return asked | fields


async def post(http: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    reply = await http.post(path, json=body_of(path, **fields))
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def details(reply: dict[str, Any]) -> tuple[int, int]:
    told = reply["meta_info"] if "meta_info" in reply else reply["usage"]
    told = told.get("completion_tokens_details") or told.get("output_tokens_details") or told
    return told["accepted_prediction_tokens"], told["rejected_prediction_tokens"]


@pytest.mark.parametrize(
    ("path", "prediction"),
    [
        (CHAT, {"type": "content", "content": "The cat"}),
        (CHAT, {"type": "content", "content": [{"type": "text", "text": "The "}, {"type": "text", "text": "cat"}]}),
        (CHAT, "The cat"),
        (COMPLETIONS, "The cat"),
        (COMPLETIONS, {"type": "content", "content": "The cat"}),
        (GENERATE, "The cat"),
        (GENERATE, ["The cat"]),
        (RESPONSES, {"type": "content", "content": "The cat"}),
        (MESSAGES, {"type": "content", "content": [{"type": "text", "text": "The cat"}]}),
        (MESSAGES, "The cat"),
        (OLLAMA_CHAT, "The cat"),
        (OLLAMA, {"type": "content", "content": "The cat"}),
    ],
    ids=str,
)
async def test_every_spelling_reaches_the_engine(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, path: str, prediction: Any
) -> None:
    fields = {"text": ["hello"]} if isinstance(prediction, list) else {}
    await http.post(path, json=body_of(path, prediction=prediction, **fields))
    assert engine.asked[0].params.prediction == tuple(text.encode("The cat", add_special=False))


async def test_a_raw_prompt_has_one_too(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    await post(http, OLLAMA, prediction="The cat", raw=True)
    assert engine.asked[0].params.prediction == tuple(text.encode("The cat", add_special=False))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, GENERATE, RESPONSES, MESSAGES])
async def test_usage_tells_what_came_true(http: httpx.AsyncClient, text: TextModel, path: str) -> None:
    whole = len(text.encode(SAID, add_special=False))
    assert details(await post(http, path, prediction=SAID)) == (whole, 0)
    other = len(text.encode("xyz", add_special=False))
    assert details(await post(http, path, prediction="xyz")) == (0, other)
    accepted, rejected = details(await post(http, path, prediction="A cat sat on the mat."))
    assert accepted > 2 and accepted + rejected == len(text.encode("A cat sat on the mat.", add_special=False))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_all_outputs_count_and_so_do_those_that_a_stop_ends(
    http: httpx.AsyncClient, text: TextModel, path: str
) -> None:
    one = details(await post(http, path, prediction=SAID))
    assert details(await post(http, path, prediction=SAID, n=2)) == (2 * one[0], 2 * one[1])
    accepted, rejected = details(await post(http, path, prediction=SAID, stop="mat"))
    assert 0 < accepted < one[0] and accepted + rejected == sum(one)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_tells_it_at_its_end(http: httpx.AsyncClient, text: TextModel, path: str) -> None:
    body = body_of(path, prediction=SAID, stream=True, stream_options={"include_usage": True})
    lines = (await http.post(path, json=body)).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    whole = len(text.encode(SAID, add_special=False))
    assert f'"accepted_prediction_tokens":{whole},"rejected_prediction_tokens":0' in lines[-2]


async def test_nothing_is_told_where_nothing_was_predicted(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for path in (CHAT, COMPLETIONS):
        for prediction in (None, ""):
            assert "completion_tokens_details" not in (await post(http, path, prediction=prediction))["usage"]
    assert "accepted_prediction_tokens" not in (await post(http, GENERATE))["meta_info"]
    assert "output_tokens_details" not in (await post(http, MESSAGES))["usage"]
    assert (await post(http, RESPONSES))["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
    assert not any(asked.params.prediction for asked in engine.asked)


async def test_a_stream_of_events_tells_it_at_its_end(http: httpx.AsyncClient, text: TextModel) -> None:
    whole = len(text.encode(SAID, add_special=False))
    for path in (RESPONSES, MESSAGES):
        lines = (await http.post(path, json=body_of(path, prediction=SAID, stream=True))).text
        assert lines.count(f'"accepted_prediction_tokens":{whole},"rejected_prediction_tokens":0') == 1


async def test_the_libraries_of_the_dialects_bring_one(app: Starlette, client: AsyncOpenAI, text: TextModel) -> None:
    whole, more = len(text.encode(SAID, add_special=False)), {"prediction": SAID}
    response: Any = await client.responses.create(model=MODEL, input="hello", extra_body=more)
    assert response.usage.output_tokens_details.accepted_prediction_tokens == whole
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)) as http:
        claude = AsyncAnthropic(api_key="none", base_url="http://test", http_client=http, max_retries=0)
        fields: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 100}
        message: Any = await claude.messages.create(**fields, extra_body=more)
        assert dict(message.usage.output_tokens_details)["accepted_prediction_tokens"] == whole


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
async def test_drafts_are_told_of_on_request(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    engine.drafted = {"ngram": Drafted([3, 2], [2, 1]), "tree": Drafted([1], [0])}
    n = 1 if path == RESPONSES else 2
    told = (await post(http, path, n=n, speculation_details=True))["usage"]["speculation"]
    assert told == {"ngram": {"fed": [3 * n, 2 * n], "accepted": [2 * n, n]}, "tree": {"fed": [n], "accepted": [0]}}
    assert "speculation" not in (await post(http, path))["usage"]


@pytest.mark.parametrize(
    ("path", "prediction", "param"),
    [
        (CHAT, {"type": "content", "content": [{"type": "image_url"}]}, "prediction.content[0]"),
        (CHAT, {"type": "text", "content": "a"}, "prediction.type"),
        (CHAT, {"type": "content"}, "prediction.content"),
        (COMPLETIONS, 3, "prediction"),
        (GENERATE, ["a", "b"], "prediction"),
        (RESPONSES, {"type": "content", "content": 3}, "prediction.content"),
        (MESSAGES, {"type": "content", "content": [{"type": "image"}]}, "prediction.content[0]"),
        (OLLAMA_CHAT, ["a"], "prediction"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_wrong_is_named(http: httpx.AsyncClient, path: str, prediction: Any, param: str) -> None:
    reply = await http.post(path, json=body_of(path, prediction=prediction))
    assert reply.status_code == 400, reply.text
    assert param.split(".")[-1].split("[")[0] in reply.text
