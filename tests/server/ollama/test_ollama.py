"""Ollama's routes on the fake engine, by its own client: what reaches the engine, and what is made of what it says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from starlette.applications import Starlette

from sapwood.config import Config
from sapwood.hub.about import About
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine, make_text, overloaded
from tests.server.test_tools import NOW, THINKING, TWO, WEATHER, prompt_of, says

pytestmark = pytest.mark.anyio

HELLO: Any = [{"role": "user", "content": "hello"}]
ABOUT = About(architecture="llama", num_parameters=134_515_008, stored="BF16", sizes={"block_count": 30}, num_bytes=7)


@pytest.fixture
def engine(text: TextModel) -> FakeEngine:
    return FakeEngine(text, max_model_len=2048)


@asynccontextmanager
async def served(engine: FakeEngine, text: TextModel) -> AsyncIterator[ollama.AsyncClient]:
    app = create_app(engine, text, Config(), MODEL, about=ABOUT)
    try:
        yield client_of(app)
    finally:
        await app.state.front.close()


def client_of(app: Starlette) -> ollama.AsyncClient:
    return ollama.AsyncClient("http://test", transport=httpx.ASGITransport(app=app))


@pytest.fixture
async def client(app: Starlette) -> ollama.AsyncClient:
    return client_of(app)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
async def test_chats_streamed_and_whole(
    client: ollama.AsyncClient, engine: FakeEngine, text: TextModel, chunk: int
) -> None:
    says(engine, text, TWO)
    engine.chunk = chunk
    fields: dict[str, Any] = {"model": f"{MODEL}:latest", "messages": HELLO, "tools": [WEATHER, NOW], "logprobs": True}
    whole = await client.chat(**fields)
    lines = [line async for line in await client.chat(**fields, stream=True)]
    called = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()]
    assert called == [("weather", {"city": "Köln"}), ("now", {})]
    streamed = [call for line in lines for call in line.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in streamed] == called
    assert "".join(line.message.content or "" for line in lines) == whole.message.content == "I look."
    assert [one for line in lines for one in line.logprobs or ()] == whole.logprobs
    last = lines[-1]
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    for end in (last, whole):
        assert end.done_reason == "stop" and end.model == MODEL and end.created_at is not None
        assert end.eval_count == len(text.encode(TWO)) + 1 and end.prompt_eval_count == len(engine.asked[-1].tokens)
        spans = (end.total_duration, end.prompt_eval_duration, end.eval_duration, end.load_duration)
        assert all(isinstance(span, int) and span >= 0 for span in spans)


async def test_thoughts(tmp_path: Path) -> None:
    text = make_text(tmp_path, THINKING)
    engine = FakeEngine(text, max_model_len=2048)
    says(engine, text, "Hm\n</think>\n\nYes.")
    async with served(engine, text) as client:
        whole = await client.chat(MODEL, HELLO, think=True)
        assert (whole.message.thinking, whole.message.content) == ("Hm", "Yes.")
        told = await client.generate(MODEL, "hello", think="high")
        assert (told.thinking, told.response) == ("Hm", "Yes.")
        lines = [line async for line in await client.chat(MODEL, HELLO, think=True, stream=True)]
        assert "".join(line.message.thinking or "" for line in lines) == "Hm"
        await client.chat(MODEL, HELLO, think=False)
        assert prompt_of(engine, text).endswith("</think>\n\n")
        assert (await client.show(MODEL)).capabilities == ["completion", "tools", "thinking"]


async def test_thinking_is_refused_where_there_is_none(client: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        await client.chat(MODEL, HELLO, think=True)
    assert (await client.chat(MODEL, HELLO, think=False)).message.content


async def test_prompts(client: ollama.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    framed = await client.generate(MODEL, "hello", system="Be brief.")
    assert prompt_of(engine, text).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello")
    raw = await client.generate(MODEL, "hello", raw=True)
    assert prompt_of(engine, text) == "hello"
    assert framed.response == raw.response == "The cat sat on the mat — naïvely."
    lines = [line async for line in await client.generate(MODEL, "hello", raw=True, stream=True)]
    assert "".join(line.response or "" for line in lines) == raw.response and lines[-1].done_reason == "stop"
    for name, value in (("system", "x"), ("think", True)):
        with pytest.raises(ollama.ResponseError, match=f"{name}: a prompt without a template"):
            await client.generate(MODEL, "hello", raw=True, **{name: value})


async def test_options(client: ollama.AsyncClient, engine: FakeEngine) -> None:
    options: dict[str, Any] = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 7, "num_predict": 4, "stop": ["zzz"],
        "repeat_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25, "num_ctx": 64, "num_gpu": 1, "mirostat": 0,
    }  # fmt: skip
    reply = await client.chat(MODEL, HELLO, options=options, keep_alive="5m")
    assert reply.done_reason == "length" and reply.eval_count == 4
    params = engine.asked[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.seed) == (0.5, 3, 0.5, 0.1, 7)
    assert (params.max_tokens, params.stop) == (4, ("zzz",))
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.2, 0.5, 0.25)
    await client.chat(MODEL, HELLO, options={"num_predict": -1, "repeat_penalty": 1.2, "repeat_last_n": 0})
    assert (engine.asked[-1].params.max_tokens, engine.asked[-1].params.repetition_penalty) == (None, 1.0)
    await client.chat(MODEL, HELLO, options={"num_predict": 1 << 20})
    assert (engine.asked[-1].params.max_tokens or 0) < 2048


@pytest.mark.parametrize("form", ["json", {"type": "object", "properties": {"a": {"type": "integer"}}}])
async def test_formats(client: ollama.AsyncClient, engine: FakeEngine, form: Any) -> None:
    for raw in (False, True):
        await client.generate(MODEL, "hello", format=form, raw=raw)
        assert engine.asked[-1].params.grammar is not None
    await client.chat(MODEL, HELLO, format=form)
    assert engine.asked[-1].params.grammar is not None


async def test_nothing_asked_is_a_model_to_load(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for path, body in (("/api/chat", {"messages": []}), ("/api/generate", {}), ("/api/generate", {"prompt": ""})):
        told = (await http.post(path, json={"model": MODEL, "keep_alive": 0} | body)).json()
        assert (told["done"], told["done_reason"]) == (True, "load")
    assert not engine.asked


@pytest.mark.parametrize(
    ("path", "change", "status", "names"),
    [
        ("chat", {"model": "other"}, 404, "other"),
        ("chat", {"options": {"num_ctx": 1 << 20}}, 400, "options.num_ctx"),
        ("chat", {"options": {"mirostat": 2}}, 400, "options.mirostat"),
        ("chat", {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, 400, "options.repeat_last_n"),
        ("chat", {"options": {"top_p": 7}}, 400, "options.top_p"),
        ("chat", {"options": {"top_k": "x"}}, 400, "options.top_k"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aaaa"]}]}, 400, "messages[0].images"),
        ("chat", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("chat", {"format": "xml"}, 400, "format"),
        ("chat", {"format": {"type": "nothing"}}, 400, "format"),
        ("chat", {"top_logprobs": 3}, 400, "top_logprobs"),
        ("chat", {"tools": [{"type": "function"}]}, 400, "tools[0].function"),
        ("generate", {"prompt": "x", "suffix": "y"}, 400, "suffix"),
        ("generate", {"prompt": "x", "template": "y"}, 400, "template"),
        ("generate", {"prompt": "x", "images": ["aaaa"]}, 400, "images"),
        ("generate", {"prompt": "x", "context": [1]}, 400, "context"),
        ("embed", {"input": 7}, 400, "input"),
        ("embeddings", {}, 400, "prompt"),
        ("pull", {}, 501, "sapwood pull"),
        ("show", {"model": "other"}, 404, "other"),
    ],
)
async def test_errors_have_ollamas_shape(
    http: httpx.AsyncClient, path: str, change: dict[str, Any], status: int, names: str
) -> None:
    reply = await http.post(f"/api/{path}", json={"model": MODEL, "messages": HELLO} | change)
    assert reply.status_code == status and list(reply.json()) == ["error"] and names in reply.json()["error"]


async def test_an_error_in_the_middle_is_a_line(
    client: ollama.AsyncClient, http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.failure, engine.fail_after = overloaded(), 3
    reply = await http.post("/api/chat", json={"model": MODEL, "messages": HELLO})
    assert reply.headers["content-type"] == "application/x-ndjson"
    *lines, last = map(json.loads, reply.text.splitlines())
    assert lines and not any(line["done"] for line in lines) and list(last) == ["error"]
    with pytest.raises(ollama.ResponseError):
        async for _ in await client.chat(MODEL, HELLO, stream=True):
            pass


async def test_what_is_known_of_the_model(text: TextModel) -> None:
    async with served(FakeEngine(text), text) as client:
        (tag,) = (await client.list()).models
        assert (tag.model, tag.size) == (f"{MODEL}:latest", 7)
        assert tag.details is not None and (tag.details.family, tag.details.parameter_size) == ("llama", "135M")
        (running,) = (await client.ps()).models
        assert running.context_length == 512 and running.expires_at is not None
        shown = await client.show(f"{MODEL}:latest")
        assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == 512
        assert shown.modelinfo["llama.block_count"] == 30 and "im_start" in (shown.template or "")
        assert shown.capabilities == ["completion", "tools"]


async def test_versions(http: httpx.AsyncClient) -> None:
    told = (await http.get("/api/version")).json()
    assert tuple(map(int, told["version"].split("."))) > (0, 6, 4) and told["sapwood"]
