"""/v1/messages on the fake engine: what reaches it, and what is made of what it says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import msgspec
import pytest
from anthropic import AsyncAnthropic

from sapwood.config import Config
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine, make_text, overloaded
from tests.server.test_tools import THINKING, TWO, prompt_of, says

pytestmark = pytest.mark.anyio

HELLO: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"name": "weather", "input_schema": SCHEMA}, {"name": "now", "input_schema": {"type": "object"}}]
ASK: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 300}


@pytest.fixture
def engine(text: TextModel) -> FakeEngine:
    return FakeEngine(text, max_model_len=2048)


@pytest.fixture
def thinker(tmp_path: Path) -> TextModel:
    return make_text(tmp_path, THINKING)


@asynccontextmanager
async def served(engine: FakeEngine, text: TextModel) -> AsyncIterator[AsyncAnthropic]:
    app = create_app(engine, text, Config(), MODEL)
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)) as http:
            yield AsyncAnthropic(api_key="none", base_url="http://test", http_client=http, max_retries=0)
    finally:
        await app.state.front.close()


async def streamed(claude: AsyncAnthropic, **fields: Any) -> tuple[list[Any], anthropic.types.Message]:
    """The raw events, and the message that the client makes of them."""
    stream = await claude.messages.create(**fields, stream=True)
    raw = [event async for event in stream]
    async with claude.messages.stream(**fields) as managed:
        message = await managed.get_final_message()
    return raw, message


def same(one: anthropic.types.Message, other: anthropic.types.Message) -> bool:
    """Ids of messages and calls are made anew."""

    def told(message: anthropic.types.Message) -> Any:
        content = [{**block.to_dict(), "id": ""} for block in message.content]
        return content, message.stop_reason, message.stop_sequence, message.usage.to_dict()

    return bool(told(one) == told(other))


@pytest.mark.parametrize("chunk", [1, 5, 1000])
async def test_calls_streamed_and_whole(
    claude: AsyncAnthropic, engine: FakeEngine, text: TextModel, chunk: int
) -> None:
    says(engine, text, TWO)
    engine.chunk = chunk
    whole = await claude.messages.create(**ASK, tools=TOOLS)
    raw, message = await streamed(claude, **ASK, tools=TOOLS)
    assert same(whole, message)
    said, first, second = whole.content
    assert said.type == "text" and said.text == "I look."
    assert first.type == second.type == "tool_use" and first.id != second.id and first.id.startswith("toolu_")
    assert (first.name, first.input, second.name, second.input) == ("weather", {"city": "Köln"}, "now", {})
    assert whole.stop_reason == "tool_use" and whole.role == "assistant" and whole.model == MODEL
    kinds = [event.type for event in raw]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    blocks = [(e.type, e.index) for e in raw if e.type in ("content_block_start", "content_block_stop")]
    assert blocks == [(f"content_block_{what}", index) for index in range(3) for what in ("start", "stop")]
    begun = raw[0].message
    assert (begun.content, begun.stop_reason, begun.usage.output_tokens) == ([], None, 0)


@pytest.mark.parametrize("display", ["summarized", "omitted"])
async def test_thoughts(thinker: TextModel, display: str) -> None:
    engine = FakeEngine(thinker, max_model_len=2048)
    says(engine, thinker, "Hm, so\n</think>\n\nYes.")
    async with served(engine, thinker) as claude:
        fields: Any = {**ASK, "thinking": {"type": "enabled", "budget_tokens": 64, "display": display}}
        whole = await claude.messages.create(**fields)
        raw, message = await streamed(claude, **fields)
        assert same(whole, message)
        thought, said = whole.content
        assert thought.type == "thinking" and thought.thinking == ("Hm, so" if display == "summarized" else "")
        assert thought.signature and said.type == "text" and said.text == "Yes."
        deltas = [event.delta.type for event in raw if event.type == "content_block_delta"]
        assert ("thinking_delta" in deltas) == (display == "summarized")
        assert deltas.index("signature_delta") < deltas.index("text_delta")
        assert whole.usage.output_tokens_details is not None and whole.usage.output_tokens_details.thinking_tokens > 3
        thinking = engine.asked[-1].params.thinking
        assert thinking is not None and thinking.budget == 64 and prompt_of(engine, thinker).endswith("<think>\n")
        off: Any = {**ASK, "thinking": {"type": "disabled"}}
        await claude.messages.create(**off)
        assert prompt_of(engine, thinker).endswith("</think>\n\n")
        await claude.messages.create(**{**ASK, "thinking": {"type": "adaptive"}}, output_config={"effort": "max"})
        assert engine.asked[-1].params.thinking is None and prompt_of(engine, thinker).endswith("<think>\n")
        await claude.messages.create(
            **{**ASK, "messages": [*HELLO, {"role": "assistant", "content": whole.content}, *HELLO]}
        )


@pytest.mark.parametrize(
    "thinking", [{"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}, {"type": "disabled"}]
)
async def test_a_model_without_thoughts_is_asked_for_some_in_vain(
    claude: AsyncAnthropic, engine: FakeEngine, thinking: Any
) -> None:
    reply = await claude.messages.create(**ASK, thinking=thinking)
    assert [block.type for block in reply.content] == ["text"] and engine.asked[-1].params.thinking is None


async def test_what_an_agent_sends(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    """A body as Claude Code makes it."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {
        **ASK,
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.37; cch=fa690;"},
            {"type": "text", "text": "You are an agent.", **cached},
        ],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "hi", **cached}],
            },
            {"role": "system", "content": "<total_tokens>9 tokens left</total_tokens>"},
        ],
        "tools": [{**tool, "eager_input_streaming": True, **cached} for tool in TOOLS],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "{}"},
        "temperature": 1,
        "stream": True,
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219", "x-api-key": "any"}
    reply = await http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert reply.status_code == 200 and reply.headers["request-id"] == reply.headers["x-request-id"]
    assert reply.headers["content-type"].startswith("text/event-stream")
    names = [line for line in reply.text.splitlines() if line.startswith("event: ")]
    assert names[:3] == ["event: message_start", "event: ping", "event: content_block_start"]
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert [f"event: {event['type']}" for event in events] == names
    prompt = prompt_of(engine, text)
    assert prompt.index("You are an agent.") < prompt.index("<reminder>\nhi")
    del body["stream"], body["max_tokens"]
    counted = await http.post("/v1/messages/count_tokens", json=body, headers=headers)
    assert counted.json() == {"input_tokens": len(engine.asked[-1].tokens)}


async def test_usage_tells_what_was_cached_and_what_is_now(
    claude: AsyncAnthropic, engine: FakeEngine, text: TextModel
) -> None:
    page = engine.facts.page_size
    for cached in (0, page, page + 1):
        engine.cached = cached
        usage = (await claude.messages.create(**ASK)).usage
        prompt = len(engine.asked[-1].tokens)
        assert usage.cache_read_input_tokens == cached
        assert usage.cache_creation_input_tokens == prompt // page * page - cached
        assert usage.input_tokens == prompt % page


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 3}, "max_tokens", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"stop_sequences": ["mat", "zzz"]}, "stop_sequence", "mat"),
        ({"extra_body": {"ignored": 1}, "max_tokens": 20_000}, "end_turn", None),
    ],
)
async def test_why_it_ended(claude: AsyncAnthropic, fields: dict[str, Any], reason: str, sequence: str | None) -> None:
    whole = await claude.messages.create(**ASK | fields)
    _, message = await streamed(claude, **ASK | fields)
    assert same(whole, message) and (whole.stop_reason, whole.stop_sequence) == (reason, sequence)
    if fields.get("max_tokens") == 0:
        assert whole.content == [] and whole.usage.output_tokens == 0


async def test_the_context_ends_before_the_tokens_that_were_asked_for(
    claude: AsyncAnthropic, engine: FakeEngine, text: TextModel
) -> None:
    engine.answer = lambda tokens, params: text.encode("on and ")
    engine.facts = msgspec.structs.replace(engine.facts, max_model_len=128)
    reply = await claude.messages.create(**ASK)
    assert reply.stop_reason == "model_context_window_exceeded"
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 127 maximum"):
        await claude.messages.create(**ASK | {"messages": [{"role": "user", "content": "hello " * 200}]})


@pytest.mark.parametrize("name", ["output_config", "output_format"])
async def test_a_format(http: httpx.AsyncClient, engine: FakeEngine, name: str) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    body = ASK | {name: {"format": form} if name == "output_config" else form}
    assert (await http.post("/v1/messages", json=body)).status_code == 200
    grammar = engine.asked[-1].params.grammar
    assert grammar is not None and "city" in grammar.text


async def test_a_prefilled_answer_goes_on(claude: AsyncAnthropic, engine: FakeEngine, text: TextModel) -> None:
    await claude.messages.create(**ASK | {"messages": [*HELLO, {"role": "assistant", "content": "{"}]})
    assert prompt_of(engine, text).endswith("assistant\n{")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "ctx", "content": "x"}]}, "messages[0].role"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop": ["x"]}, "stop_sequences"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "output_config.format"),
    ],
)
async def test_errors_are_worded_as_anthropics(http: httpx.AsyncClient, change: dict[str, Any], names: str) -> None:
    reply = await http.post("/v1/messages", json=ASK | change)
    told = reply.json()
    assert reply.status_code == 400 and told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
    assert names in told["error"]["message"] and told["request_id"] == reply.headers["request-id"]


async def test_errors_by_status(claude: AsyncAnthropic, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        await claude.messages.create(**ASK | {"model": "claude-99"})
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError, match="'type': 'error'"):
        await claude.models.retrieve("claude-99")

    def full(*args: Any, **kwargs: Any) -> None:
        raise overloaded()

    monkeypatch.setattr(engine, "submit", full)
    with pytest.raises(anthropic.APIStatusError) as refused:
        await claude.messages.create(**ASK)
    assert refused.value.status_code == 529 and refused.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


async def test_an_error_in_the_middle_is_an_event(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure, engine.fail_after = overloaded(), 3
    reply = await http.post("/v1/messages", json=ASK | {"stream": True})
    *_, name, data = reply.text.strip().split("\n")
    assert name == "event: error"
    assert json.loads(data[6:])["error"]["type"] == "overloaded_error" and "message_stop" not in reply.text


async def test_models(claude: AsyncAnthropic) -> None:
    (model,) = [one async for one in claude.models.list()]
    assert (model.id, model.type, model.display_name) == (MODEL, "model", MODEL) and model.created_at.tzinfo is not None
