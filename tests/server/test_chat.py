from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from sapwood.base.errors import ConfigError
from sapwood.config import Config
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

ANSWER = "The cat sat on the mat — naïvely."
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def prompt_of(engine: FakeEngine, text: TextModel) -> str:
    return text.decode(engine.asked[-1].tokens, skip_special=False)


async def test_answer(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    engine.cached = 3
    reply = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.system_fingerprint
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert choice.model_extra == {"stop_reason": None, "matched_stop": text.eos_ids[0]}
    assert choice.message.model_extra == {}  # nothing is known of thoughts
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 3
    assert prompt_of(engine, text) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert engine.asked[0].params.max_tokens is None


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stop", [None, "mat"])
async def test_stream_equals_whole(
    client: AsyncOpenAI, engine: FakeEngine, chunk: int, n: int, stop: str | None
) -> None:
    engine.chunk = chunk
    whole = await client.chat.completions.create(
        model=MODEL, messages=HELLO, n=n, stop=stop, logprobs=True, top_logprobs=2
    )
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        n=n,
        stop=stop,
        logprobs=True,
        top_logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    for index, choice in enumerate(whole.choices):
        told = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert (told[0].delta.role, told[0].delta.content) == ("assistant", "")
        assert all(c.delta.role is None for c in told[1:])
        assert "".join(c.delta.content or "" for c in told) == choice.message.content
        assert [c.finish_reason for c in told if c.finish_reason] == [choice.finish_reason]
        assert told[-1].finish_reason and told[-1].model_extra == choice.model_extra
        assert choice.logprobs is not None
        assert [p for c in told if c.logprobs for p in c.logprobs.content or ()] == choice.logprobs.content


async def test_logprobs(client: AsyncOpenAI, text: TextModel) -> None:
    reply = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_completion_tokens=2, logprobs=True, top_logprobs=3
    )
    scores = reply.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    ids = text.encode(ANSWER)[:2]
    assert [bytes(score.bytes or ()) for score in scores.content] == [text.token_bytes(id) for id in ids]
    assert [score.logprob for score in scores.content] == [-id / 100 for id in ids]
    assert [top.logprob for top in scores.content[0].top_logprobs] == [-10.0, -11.0, -12.0]


@pytest.mark.parametrize("name", ["logprob_token_ids", "token_ids_logprob"])
@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_named_tokens(http: httpx.AsyncClient, text: TextModel, name: str, stream: bool) -> None:
    body = {
        "messages": HELLO,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 2,
        name: [30, 11, 30],
        "stream": stream,
    }
    reply = (await http.post("/v1/chat/completions", json=body)).text
    chunks = [json.loads(event.removeprefix("data: ")) for event in reply.split("\n\n") if '"choices"' in event]
    (told,) = [
        one for chunk in chunks for choice in chunk["choices"] for one in (choice["logprobs"] or {}).get("content", ())
    ]
    found = [(one["bytes"], one["logprob"]) for one in told["top_logprobs"]]
    assert found == [(list(text.token_bytes(id)), -float(id)) for id in (10, 11, 30)], "each once"


async def test_no_logprobs_unless_asked_for(client: AsyncOpenAI, engine: FakeEngine) -> None:
    reply = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert reply.choices[0].logprobs is None
    assert engine.asked[0].params.logprobs is None


async def test_roles_and_parts(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]  # fmt: skip
    await client.chat.completions.create(model=MODEL, messages=messages)
    assert prompt_of(engine, text) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


async def test_template_arguments(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    create = client.chat.completions.create
    await create(model=MODEL, messages=HELLO, extra_body={"chat_template_kwargs": {"mood": "glad"}})
    assert prompt_of(engine, text).endswith("assistant\n(glad) ")
    await create(model=MODEL, messages=HELLO, extra_body={"add_generation_prompt": False})
    assert prompt_of(engine, text).endswith("<|im_end|>\n")
    started: list[Any] = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    await create(model=MODEL, messages=started, extra_body={"continue_final_message": True})
    assert prompt_of(engine, text).endswith("<|im_start|>assistant\nOnce upon")


async def test_harmless_fields_are_ignored(http: httpx.AsyncClient) -> None:
    harmless = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "prediction": {"type": "content", "content": "The cat"},
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
    }
    reply = await http.post("/v1/chat/completions", json={"messages": HELLO} | harmless)
    assert reply.status_code == 200


async def test_defaults_of_the_model(engine: FakeEngine, text: TextModel) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.95, "top_k": 0.0, "min_p": None, "max_length": 99, "do_sample": True}
    app = create_app(engine, text, Config(), MODEL, defaults=defaults)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        await http.post("/v1/chat/completions", json={"messages": HELLO, "top_p": 0.5})
    params = engine.asked[0].params
    assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.5, 0)


@pytest.mark.parametrize(
    "defaults",
    [
        {"temperature": -1.0},
        {"top_p": "0.9"},
        {"top_k": 1.5},
        {"min_p": True},
        {"temperature": float("nan")},
        {"top_k": []},
    ],
)
def test_defaults_that_cannot_be_used(engine: FakeEngine, text: TextModel, defaults: dict[str, Any]) -> None:
    (name,) = defaults
    with pytest.raises(
        ConfigError, match=rf"generation_config\.json: {name} must be .*Correct the value, or remove it"
    ):
        create_app(engine, text, Config(), MODEL, defaults=defaults)
