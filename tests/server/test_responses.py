"""Responses: items in, items out, and every event of their streams, through the official client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from sapwood.base.errors import GenerationFailed
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine
from tests.server.test_tools import SCHEMA, THINKING, TWO, prompt_of, says, served

pytestmark = pytest.mark.anyio

ANSWER = "The cat sat on the mat — naïvely."
WEATHER: Any = {"type": "function", "name": "weather", "description": "", "parameters": SCHEMA}
NOW: Any = {"type": "function", "name": "now", "description": "the time", "parameters": None}
PATCH: Any = {"type": "custom", "name": "patch", "description": "Change files."}
LOGPROBS: Any = ["message.output_text.logprobs"]


@pytest.fixture
def engine(text: TextModel) -> FakeEngine:
    return FakeEngine(text, max_model_len=4096)  # tools take room


def said(output: list[Any]) -> list[dict[str, Any]]:
    """Items without their ids."""
    return [{k: v for k, v in item.to_dict().items() if k not in ("id", "call_id")} for item in output]


async def test_answer(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    engine.cached = 3
    reply = await client.responses.create(
        model=MODEL, input="hello", instructions="Be brief.", metadata={"a": "b"}, temperature=0.5, user="me"
    )
    assert (reply.object, reply.status, reply.output_text, reply.error) == ("response", "completed", ANSWER, None)
    assert reply.id.startswith("resp_") and reply.completed_at is not None
    assert (reply.metadata, reply.temperature, reply.user, reply.store) == ({"a": "b"}, 0.5, "me", True)  # type: ignore[attr-defined]
    (item,) = reply.output
    assert item.type == "message" and item.status == "completed" and item.id.startswith("msg_")
    num_prompt = len(engine.asked[0].tokens)
    assert reply.usage is not None and reply.usage.input_tokens_details.cached_tokens == 3
    assert (reply.usage.input_tokens, reply.usage.total_tokens) == (num_prompt, num_prompt + reply.usage.output_tokens)
    assert prompt_of(engine, text) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


async def events_of(client: AsyncOpenAI, **fields: Any) -> list[Any]:
    events = [event async for event in await client.responses.create(model=MODEL, stream=True, **fields)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize("chunk", [1, 1000])
async def test_events_of_a_text(client: AsyncOpenAI, engine: FakeEngine, chunk: int) -> None:
    engine.chunk = chunk
    events = await events_of(client, input="hello", include=LOGPROBS, top_logprobs=2)
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0].response.status == events[1].response.status == "in_progress"
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    done = next(event for event in events if event.type == "response.output_text.done")
    assert "".join(event.delta for event in deltas) == done.text == ANSWER
    told = [one.to_dict() for event in deltas for one in event.logprobs]
    assert told == [one.to_dict() for one in done.logprobs] and len(told[0]["top_logprobs"]) == 2
    (item,) = events[-1].response.output
    assert item == next(event.item for event in events if event.type == "response.output_item.done")
    assert {event.item_id for event in deltas} == {item.id} and item.content[0].logprobs


async def test_thoughts_texts_and_calls(tmp_path: Path) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):
        says(engine, text, "<think>\nHm, a city.\n</think>\n\n" + TWO)
        fields: dict[str, Any] = {"input": "hello", "tools": [WEATHER, NOW], "include": ["reasoning.encrypted_content"]}
        whole = await client.responses.create(model=MODEL, **fields)
        events = await events_of(client, **fields)
        thought, message, weather, now = whole.output
        assert thought.type == "reasoning" and thought.content and thought.content[0].text == "Hm, a city."
        assert thought.id.startswith("rs_") and thought.encrypted_content
        assert message.type == "message" and whole.output_text == "I look."
        assert weather.type == "function_call" and (weather.name, weather.arguments) == ("weather", '{"city": "Köln"}')
        assert now.type == "function_call" and now.call_id != weather.call_id and now.status == "completed"
        assert whole.usage is not None and whole.usage.output_tokens_details.reasoning_tokens > 0
        streamed = events[-1].response
        assert said(streamed.output) == said(whole.output)
        closed = [event.item for event in events if event.type == "response.output_item.done"]
        assert closed == streamed.output
        for index, item in enumerate(streamed.output):
            kinds = [event.type for event in events if getattr(event, "output_index", None) == index]
            assert (kinds[0], kinds[-1]) == ("response.output_item.added", "response.output_item.done")
            deltas = [e.delta for e in events if e.type.endswith(".delta") and e.item_id == item.id]
            spoken = item.arguments if item.type == "function_call" else item.content[0].text
            assert "".join(deltas) == spoken
        # What came out goes in again, and is the same prompt whichever way: all of it, or by the id of the response.
        outputs: list[Any] = [
            {"type": "function_call_output", "call_id": weather.call_id, "output": "sunny"},
            {
                "type": "function_call_output",
                "call_id": now.call_id,
                "output": [{"type": "input_text", "text": "noon"}],
            },
        ]
        back: list[Any] = [{"role": "user", "content": "hello"}, *(item.to_dict() for item in whole.output), *outputs]
        await client.responses.create(model=MODEL, input=back, tools=[WEATHER, NOW])
        by_items = prompt_of(engine, text)
        await client.responses.create(model=MODEL, input=outputs, tools=[WEATHER, NOW], previous_response_id=whole.id)
        assert prompt_of(engine, text) == by_items
        assert "sunny" in by_items and "noon" in by_items


async def test_thoughts_come_back_sealed(tmp_path: Path) -> None:
    template = THINKING.replace("{{ m.content }}", "[{{ m.reasoning_content }}]{{ m.content }}")
    async with served(tmp_path, template) as (client, engine, text, _):
        says(engine, text, "<think>\nHm — a city.\n</think>\n\nYes.")
        first = await client.responses.create(
            model=MODEL, input="hello", store=False, include=["reasoning.encrypted_content"]
        )
        thought, message = (item.to_dict() for item in first.output)
        del thought["content"]
        again: list[Any] = [{"role": "user", "content": "hello"}, thought, message, {"role": "user", "content": "so?"}]
        await client.responses.create(model=MODEL, input=again)
        assert "[Hm — a city.]Yes." in prompt_of(engine, text)
        again[1] = thought | {"encrypted_content": "gAAAA"}
        with pytest.raises(BadRequestError, match=r"input\[1\].encrypted_content was not made by this server"):
            await client.responses.create(model=MODEL, input=again)


async def test_custom_tools(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    says(engine, text, '<tool_call>\n{"name": "patch", "arguments": {"input": "*** Begin\\n+e"}}\n</tool_call>')
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin"'}
    events = await events_of(client, input="hello", tools=[PATCH | {"format": grammar}], max_output_tokens=300)
    (call,) = events[-1].response.output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "patch", "*** Begin\n+e")
    told = [event for event in events if event.type.startswith("response.custom_tool_call_input")]
    assert [event.type.rpartition(".")[2] for event in told] == ["delta", "done"]
    assert told[0].delta == told[1].input == call.input
    answer = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "Done."}
    await client.responses.create(model=MODEL, input=[call.to_dict(), answer], tools=[PATCH])
    assert '{"name": "patch", "arguments": {"input": "*** Begin\\n+e"}}' in prompt_of(engine, text)
    assert "Done." in prompt_of(engine, text)


async def test_an_expression_binds_a_custom_tool(client: AsyncOpenAI, engine: FakeEngine) -> None:
    grammar = {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}
    choice: Any = {"type": "custom", "name": "patch"}
    await client.responses.create(
        model=MODEL, input="hello", tools=[PATCH | {"format": grammar}], tool_choice=choice, max_output_tokens=3
    )
    asked = engine.asked[-1].params.grammar
    assert asked is not None and "[0-9]+" in asked.text


async def test_namespaces(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    says(engine, text, '<tool_call>\n{"name": "maps.weather", "arguments": {"city": "Oslo"}}\n</tool_call>')
    maps: Any = {"type": "namespace", "name": "maps", "description": "", "tools": [WEATHER]}
    reply = await client.responses.create(model=MODEL, input="hello", tools=[maps, WEATHER], max_output_tokens=300)
    (call,) = reply.output
    assert call.type == "function_call" and (call.namespace, call.name) == ("maps", "weather")
    await client.responses.create(model=MODEL, input=[call.to_dict()], tools=[maps])  # type: ignore[list-item]
    assert '"name": "maps.weather"' in prompt_of(engine, text)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["weather", "now"]),
        ({"type": "function", "name": "now"}, ["now"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}, ["now"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}, None),
        ("auto", None),
        ("none", None),
    ],
)
async def test_choices(client: AsyncOpenAI, engine: FakeEngine, choice: Any, names: list[str] | None) -> None:
    await client.responses.create(
        model=MODEL, input="hello", tools=[WEATHER, NOW], tool_choice=choice, max_output_tokens=3
    )
    grammar = engine.asked[-1].params.grammar
    assert (grammar is None) == (names is None)
    if grammar is not None and names is not None:
        assert [name for name in ("weather", "now") if name in grammar.text] == names


async def test_formats_and_limits(client: AsyncOpenAI, engine: FakeEngine) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    reply = await client.responses.create(model=MODEL, input="hello", text=form, max_output_tokens=3)
    grammar = engine.asked[-1].params.grammar
    assert grammar is not None and "city" in grammar.text and engine.asked[-1].params.max_tokens == 3
    assert reply.status == "incomplete" and reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens" and reply.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert reply.text is not None and reply.text.to_dict() == form
    events = await events_of(client, input="hello", max_output_tokens=3)
    assert events[-1].type == "response.incomplete"


async def test_roles(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    items: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"role": "system", "content": "Late."},
    ]
    await client.responses.create(model=MODEL, input=items, instructions="Be brief.")
    assert prompt_of(engine, text) == (
        "<|im_start|>system\nBe brief.\n\nRules.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>system\nLate.<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_truncation(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    engine.facts = msgspec.structs.replace(engine.facts, max_model_len=512)
    turns: Any = []
    for number in range(40):
        turns += {"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}
    turns.append({"role": "user", "content": "last"})
    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(model=MODEL, input=turns, max_output_tokens=30)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    await client.responses.create(
        model=MODEL, input=turns, instructions="Be brief.", truncation="auto", max_output_tokens=30
    )
    prompt, tokens = prompt_of(engine, text), engine.asked[-1].tokens
    assert "Be brief." in prompt and "last" in prompt and "question 39" in prompt and "question 0" not in prompt
    assert len(tokens) <= 512 - 30 < len(tokens) + len(text.encode("<|im_start|>user\nquestion 39<|im_end|>\n" * 2))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": ["message"], "role": "user"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "f"}]}, "input[0]"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "function", "name": "no spaces"}]}, "tools[0].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["all"]}, "include"),
        ({"metadata": {"a": "b" * 513}}, "metadata[...]"),
        ({"background": True, "store": False}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"truncation": "some"}, "truncation"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
async def test_refusals(http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    reply = await http.post("/v1/responses", json={"input": "hello"} | fields)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param, reply.text
    assert not engine.asked


@pytest.mark.parametrize("fail_after", [0, 4])
async def test_errors(client: AsyncOpenAI, engine: FakeEngine, fail_after: int) -> None:
    engine.failure, engine.fail_after = GenerationFailed("It broke."), fail_after
    with pytest.raises(Exception, match="It broke"):
        await client.responses.create(model=MODEL, input="hello")
    if fail_after == 0:
        with pytest.raises(Exception, match="It broke"):
            await events_of(client, input="hello")
        return
    events = await events_of(client, input="hello")
    error, failed = events[-2:]
    assert (error.type, error.message, error.code) == ("error", "It broke.", "generation_failed")
    assert (failed.type, failed.response.status) == ("response.failed", "failed")
    assert failed.response.error.to_dict() == {"code": "generation_failed", "message": "It broke."}


async def test_input_tokens(client: AsyncOpenAI, engine: FakeEngine) -> None:
    fields: dict[str, Any] = {"model": MODEL, "input": "hello", "instructions": "Be brief.", "tools": [WEATHER]}
    counted = await client.responses.input_tokens.count(**fields)
    assert not engine.asked
    reply = await client.responses.create(**fields)
    assert reply.usage is not None and counted.input_tokens == reply.usage.input_tokens


async def test_what_is_not_stored_is_not_found(client: AsyncOpenAI) -> None:
    reply = await client.responses.create(model=MODEL, input="hello", store=False)
    with pytest.raises(NotFoundError, match="There is no response"):
        await client.responses.retrieve(reply.id)
    with pytest.raises(BadRequestError, match="previous_response_id: there is no response"):
        await client.responses.create(model=MODEL, input="and?", previous_response_id=reply.id)
