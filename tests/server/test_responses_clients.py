"""Responses as clients use them: agents of several libraries, and what a coding agent sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import pydantic
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI

from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine
from tests.server.test_responses import NOW, WEATHER
from tests.server.test_tools import prompt_of

pytestmark = pytest.mark.anyio

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ANSWER = "It is sunny."


@pytest.fixture
def engine(text: TextModel) -> FakeEngine:
    return FakeEngine(text, max_model_len=8192)


def says_in_turn(engine: FakeEngine, text: TextModel, answers: Sequence[str]) -> None:
    left = iter(answers)
    engine.answer = lambda tokens, params: [*text.encode(next(left)), text.eos_ids[0]]


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


async def test_langchain(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    says_in_turn(engine, text, [CALL, ANSWER, ANSWER])
    model = ChatOpenAI(
        model=MODEL,
        base_url="http://test/v1",
        api_key="x",
        http_async_client=http,
        use_responses_api=True,  # type: ignore[arg-type]
    )
    called = await model.bind_tools([weather]).ainvoke("Oslo?")
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Oslo"})]
    assert (await model.ainvoke("Oslo?")).text == ANSWER
    assert "".join([str(chunk.text) async for chunk in model.astream("Oslo?")]) == ANSWER


class Weather(pydantic.BaseModel):
    city: str


async def test_the_official_helpers(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    says_in_turn(engine, text, [f"I look.\n{CALL}", '{"city": "Oslo"}', '{"city": "Oslo"}'])
    async with client.responses.stream(model=MODEL, input="Oslo?", tools=[WEATHER]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"] and kinds[-1] == "response.completed"
    parsed = await client.responses.parse(model=MODEL, input="Oslo?", text_format=Weather)
    assert parsed.output_parsed == Weather(city="Oslo")
    async with client.responses.stream(model=MODEL, input="Oslo?", text_format=Weather) as typed:
        assert (await typed.get_final_response()).output_parsed == Weather(city="Oslo")


async def test_a_coding_agent(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    """It keeps the conversation itself, sends all of it each time, and offers functions, namespaces and custom tools."""
    patch = '{"name": "apply_patch", "arguments": {"input": "*** Begin Patch\\n+x\\n*** End Patch"}}'
    group = '{"name": "agents.now", "arguments": {}}'
    says_in_turn(
        engine, text, [f"I patch.\n<tool_call>\n{patch}\n</tool_call>\n<tool_call>\n{group}\n</tool_call>", ANSWER]
    )
    lark = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" LF'}
    fields: dict[str, Any] = {
        "model": MODEL, "stream": True, "store": False, "tool_choice": "auto", "parallel_tool_calls": True,
        "instructions": "You edit files.", "include": ["reasoning.encrypted_content"], "prompt_cache_key": "thread 1",
        "reasoning": {"effort": "medium", "summary": "auto"}, "text": {"verbosity": "low"},
        "extra_body": {"client_metadata": {"version": "1"}},
        "tools": [
            WEATHER | {"strict": False},
            {"type": "custom", "name": "apply_patch", "description": "Edit files.", "format": lark},
            {"type": "namespace", "name": "agents", "description": "Others.", "tools": [NOW]},
        ],
    }  # fmt: skip
    history: list[Any] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "No network."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Edit it."}]},
    ]
    events: list[Any] = [event async for event in await client.responses.create(input=history, **fields)]
    items = [event.item.to_dict() for event in events if event.type == "response.output_item.done"]
    assert [item["type"] for item in items] == ["message", "custom_tool_call", "function_call"]
    assert items[1]["input"].startswith("*** Begin Patch\n+x") and items[2]["namespace"] == "agents"
    assert events[-1].type == "response.completed" and events[-1].response.usage.output_tokens
    history += [
        *items,
        {"type": "custom_tool_call_output", "call_id": items[1]["call_id"], "output": "Done!"},
        {
            "type": "function_call_output",
            "call_id": items[2]["call_id"],
            "output": [{"type": "input_text", "text": "noon"}],
        },
    ]
    events = [event async for event in await client.responses.create(input=history, **fields)]
    assert events[-1].response.output_text == ANSWER
    prompt = prompt_of(engine, text)
    assert "You edit files.\n\nNo network." in prompt and "Done!" in prompt and "noon" in prompt
    assert patch in prompt and group in prompt and "*** Begin Patch" in prompt
