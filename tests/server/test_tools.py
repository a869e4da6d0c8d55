"""Tools and thoughts in chat completions: what reaches the engine, and what is made of what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI

from sapwood.config import Config
from sapwood.config.flags import from_options
from sapwood.grammar.spellings import Asked
from sapwood.server import create_app
from sapwood.server.front import Front
from sapwood.server.openai import replies
from sapwood.server.sse import frame
from sapwood.text import TextModel
from tests.server.fakes import CHATML, MODEL, FakeEngine, make_text

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


WEATHER, NOW = tool("weather"), {"type": "function", "function": {"name": "now", "description": "the time"}}
TWO = (
    'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
THINKING = (
    CHATML.replace("{% for m", "{% if tools %}<tools>{{ tools | tojson }}</tools> <tool_call>\n{% endif %}{% for m")
    + "{% if add_generation_prompt and enable_thinking is defined %}"
    "{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{% endif %}"
)
PHI = THINKING.replace("<tool_call>", "<|tool|><|tool_call|><|/tool_call|>")


def says(engine: FakeEngine, text: TextModel, answer: str) -> None:
    engine.answer = lambda tokens, params: [*text.encode(answer), text.eos_ids[0]]


def prompt_of(engine: FakeEngine, text: TextModel) -> str:
    return text.decode(engine.asked[-1].tokens, skip_special=False)


def spoken(chunks: list[Any], index: int = 0) -> tuple[str | None, str, list[dict[str, str]], str | None]:
    """Text, thoughts and calls that deltas add up to, and the reason of the end."""
    content, thought, calls, finish = None, "", [], None
    for choice in (choice for chunk in chunks for choice in chunk.choices if choice.index == index):
        delta = choice.delta
        content = content if delta.content is None else (content or "") + delta.content
        thought += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or ():
            if call.index == len(calls):
                assert call.id and call.type == "function"
                calls.append({"name": call.function.name, "arguments": ""})
            calls[call.index]["arguments"] += call.function.arguments or ""
        finish = choice.finish_reason or finish
    return content, thought, calls, finish


@asynccontextmanager
async def served(
    path: Path, template: str, special: tuple[str, ...] = (), config: Config | None = None
) -> AsyncIterator[tuple[AsyncOpenAI, FakeEngine, TextModel, httpx.AsyncClient]]:
    text = make_text(path, template, special)
    engine = FakeEngine(text, max_model_len=2048)
    app = create_app(engine, text, config or Config(), MODEL)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
            yield (
                AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0),
                engine,
                text,
                http,
            )
    finally:
        await app.state.front.close()


@pytest.mark.parametrize("chunk", [1, 3, 1000])
async def test_calls_streamed_and_whole(client: AsyncOpenAI, engine: FakeEngine, text: TextModel, chunk: int) -> None:
    says(engine, text, TWO)
    engine.chunk = chunk
    fields: dict[str, Any] = {
        "model": MODEL, "messages": HELLO, "tools": [WEATHER, NOW], "n": 2, "logprobs": True, "max_tokens": 300
    }  # fmt: skip
    engine.facts = msgspec.structs.replace(engine.facts, max_model_len=2048)
    whole = await client.chat.completions.create(**fields)
    chunks = [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]
    for choice in whole.choices:
        calls = choice.message.tool_calls
        assert calls is not None and len({call.id for call in calls}) == 2
        assert choice.message.content == "I look." and choice.finish_reason == "tool_calls"
        assert [(c.function.name, c.function.arguments) for c in calls] == [
            ("weather", '{"city": "Köln"}'),
            ("now", "{}"),
        ]
        told = spoken(chunks, choice.index)
        assert told == (
            "I look.", "", [{"name": c.function.name, "arguments": c.function.arguments} for c in calls], "tool_calls"
        )  # fmt: skip
        assert choice.logprobs is not None and choice.logprobs.content is not None
        data = b"".join(bytes(one.bytes or ()) for one in choice.logprobs.content)
        assert data.decode() == TWO + "<|im_end|>"
        streamed = [
            one
            for c in chunks
            for d in c.choices
            if d.index == choice.index and d.logprobs
            for one in d.logprobs.content
        ]
        assert streamed == choice.logprobs.content


@pytest.mark.parametrize("tools", [[], [NOW]])
async def test_chats_without_tools_are_framed_by_a_mould(
    client: AsyncOpenAI, engine: FakeEngine, text: TextModel, monkeypatch: pytest.MonkeyPatch, tools: list[Any]
) -> None:
    encoded: list[Any] = []
    monkeypatch.setattr(replies, "frame", lambda reply: encoded.append(reply) or frame(reply))
    engine.facts = msgspec.structs.replace(engine.facts, max_model_len=2048)
    engine.chunk = 1
    says(engine, text, "Hello, hello! " * 8)
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=tools, max_tokens=200, stream=True)
    content, _, _, finish = spoken([one async for one in stream])
    assert content is not None and content.strip() == ("Hello, hello! " * 8).strip() and finish == "stop"
    assert len(encoded) > 20 if tools else len(encoded) <= 3


async def test_a_template_without_tools_is_told_in_words(
    client: AsyncOpenAI, engine: FakeEngine, text: TextModel
) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be kind."}, *HELLO]
    engine.facts = msgspec.structs.replace(engine.facts, max_model_len=2048)
    await client.chat.completions.create(model=MODEL, messages=messages, tools=[NOW], max_tokens=5)
    prompt = prompt_of(engine, text)
    assert prompt.startswith("<|im_start|>system\nBe kind.\n\nYou can call functions.") and json.dumps(NOW) in prompt
    assert engine.asked[-1].params.grammar is None


async def test_choices(tmp_path: Path) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):

        async def grammar(**fields: Any) -> str:
            await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=300, **fields)
            asked = engine.asked[-1].params.grammar
            return "" if asked is None else asked.text

        both = [WEATHER, NOW]
        assert await grammar(tools=both) == "" and "<tools>" in prompt_of(engine, text)
        assert await grammar(tools=both, tool_choice="none") == "" and "<tools>" not in prompt_of(engine, text)
        required = await grammar(tools=both, tool_choice="required")
        assert "weather" in required and "now" in required and '{"some"' in required
        named = await grammar(tools=both, tool_choice={"type": "function", "function": {"name": "now"}})
        assert "weather" not in named and "now" in named and '{"some"' not in named
        assert "weather" in prompt_of(engine, text)
        one = await grammar(tools=both, tool_choice="required", parallel_tool_calls=False)
        assert '{"some"' not in one
        allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
        assert "weather" not in await grammar(
            tools=both, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}
        )
        strict = await grammar(tools=[tool("weather", strict=True), NOW])
        assert '"until": "<tool_call>"' in strict
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA | {"title": "answer"}}}
        either = await grammar(tools=both, response_format=form)
        assert "answer" in either and "weather" in either


async def test_only_one_call_where_no_more_are_wanted(tmp_path: Path) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):
        says(engine, text, TWO)
        reply = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            tools=[WEATHER, NOW],
            parallel_tool_calls=False,  # type: ignore[list-item]
        )
        assert len(reply.choices[0].message.tool_calls or ()) == 1


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function", "name"),
    ({"tools": [NOW, {"type": "function", "function": {"name": 5}}]}, "tools[1].function.name", "str"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
    ({"tools": [NOW, NOW]}, "tools[1].function.name", "two tools"),
    ({"tools": [tool("f", parameters={"type": "string"})]}, "tools[0].function.parameters", "object"),
    ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters", "object"),
    ({"tools": [NOW], "tool_choice": "often"}, "tool_choice", "required"),
    ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "then"}}}, "tool_choice", "then"),
    ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice", "required"),
    ({"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}}, "tool_choice", "mode"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tools": [NOW, tool("f", strict=True, parameters={"properties": {"a": {"uniqueItems": True, "type": "array"}}})]},
     "tools[1].function.parameters", "uniqueItems"),
    ({"thinking_budget": 5}, "thinking_budget", "thoughts"),
    ({"thinking_budget": -5}, "thinking_budget", "0"),
    ({"max_thinking_tokens": 5}, "max_thinking_tokens", "thoughts"),
    ({"thinking_token_budget": 5}, "thinking_token_budget", "thoughts"),
    ({"chat_template_kwargs": {"thinking_budget": "x"}}, "chat_template_kwargs.thinking_budget", "int"),
    ({"chat_template_kwargs": {"thinking_budget": True}}, "chat_template_kwargs.thinking_budget", "int"),
    ({"chat_template_kwargs": {"thinking_budget": -1}}, "chat_template_kwargs.thinking_budget", "0"),
    ({"chat_template_kwargs": {"thinking_budget": 10**30}}, "chat_template_kwargs.thinking_budget", ""),
    ({"chat_template_kwargs": {"thinking_budget": 2**31}}, "chat_template_kwargs.thinking_budget", "2147483647"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), BAD)
async def test_bad_fields(
    http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    reply = await http.post("/v1/chat/completions", json={"messages": HELLO} | fields)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == param and words in error["message"], error
    assert engine.asked == []


async def test_many_schemas_that_take_long_share_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def slow(self: Front, one: Asked) -> None:
        asked.append(one.param)
        await asyncio.sleep(0.05)

    monkeypatch.setattr(Front, "check_grammar", slow)
    config = from_options({"grammar_compile_seconds": 0.1})
    async with served(tmp_path, THINKING, config=config) as (client, _engine, _text, _http):
        tools: list[Any] = [tool(f"f{number}", strict=True) for number in range(10)]
        await client.chat.completions.create(model=MODEL, messages=HELLO, tools=tools, max_tokens=5)
        assert asked[0] == "tools[0].function.parameters" and asked[-1] == "tools" and len(asked) < 8


async def test_tokens_that_are_special_are_read(tmp_path: Path) -> None:
    written = '<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>'
    async with served(tmp_path, PHI, ("<|tool_call|>", "<|/tool_call|>", "<|other|>")) as (client, engine, text, _):
        says(engine, text, "<|other|>" + written)
        create = client.chat.completions.create
        reply = await create(model=MODEL, messages=HELLO, tools=[NOW])  # type: ignore[list-item]
        assert [call.function.name for call in reply.choices[0].message.tool_calls or ()] == ["now"]
        assert reply.choices[0].message.content is None
        plain = await create(model=MODEL, messages=HELLO)
        assert plain.choices[0].message.content == written[13:-14]  # nobody reads calls: special tokens are no text


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("opened", [True, False, None])
async def test_thoughts(tmp_path: Path, chunk: int, opened: bool | None) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):
        engine.chunk = chunk
        thought = {True: "Hm.\nHm!\n</think>\n\n", False: "", None: "<think>\nHm.\nHm!\n</think>\n\n"}[opened]
        says(engine, text, thought + TWO)
        extra: dict[str, Any] = {} if opened is None else {"chat_template_kwargs": {"enable_thinking": opened}}
        fields: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": [WEATHER, NOW], "extra_body": extra}
        reply = await client.chat.completions.create(**fields)
        message = reply.choices[0].message
        want = "" if opened is False else "Hm.\nHm!"
        assert (getattr(message, "reasoning_content", None) or "") == want
        assert message.content == "I look." and len(message.tool_calls or ()) == 2
        assert (message.model_extra or {})["reasoning_content"] == (want or None)
        assert reply.usage and reply.usage.model_extra == {"reasoning_tokens": len(text.encode(thought.rstrip()))}
        details = reply.usage.completion_tokens_details
        assert details is not None and details.reasoning_tokens == len(text.encode(thought.rstrip()))
        stream = await client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.model_extra == {"reasoning_content": None}
        content, thoughts, calls, finish = spoken(chunks)
        assert (content, thoughts, len(calls), finish) == ("I look.", want, 2, "tool_calls")
        assert chunks[-1].usage == reply.usage


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("chunk", [1, 1000])
async def test_thoughts_that_are_not_split(tmp_path: Path, tools: bool, chunk: int) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):
        engine.chunk = chunk
        thought = "<think>\n Hm? " + TWO.partition("\n")[2].partition("\n<tool")[0] + " \n</think>\n\n"
        says(engine, text, thought + (TWO if tools else "Yes."))
        fields: dict[str, Any] = {"model": MODEL, "messages": HELLO, "extra_body": {"separate_reasoning": False}}
        fields |= {"tools": [WEATHER, NOW]} if tools else {}
        reply = await client.chat.completions.create(**fields)
        message = reply.choices[0].message
        assert message.content == thought + ("I look." if tools else "Yes.")
        assert message.model_extra == {"reasoning_content": None} and len(message.tool_calls or ()) == 2 * tools
        assert reply.usage and (reply.usage.model_extra or {})["reasoning_tokens"] > 0
        stream = await client.chat.completions.create(**fields, stream=True)
        content, thoughts, calls, _ = spoken([chunk async for chunk in stream])
        assert (content, thoughts, len(calls)) == (message.content, "", 2 * tools)


async def test_thoughts_that_end_too_soon(tmp_path: Path) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):
        says(engine, text, "Hm. Hm. stop here")
        reply = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stop="stop", extra_body={"enable_thinking": True}
        )
        message = reply.choices[0].message
        assert (message.content, message.model_extra and message.model_extra["reasoning_content"]) == ("", "Hm. Hm.")
        assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("chunk", [1, 1000])
async def test_a_stop_string_within_a_call_leaves_nothing_to_run(tmp_path: Path, chunk: int) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):
        engine.chunk = chunk
        says(engine, text, TWO)
        fields: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": [WEATHER, NOW]}
        for stop, want in (('": "K', "stop"), ("</tool_call>", "tool_calls")):
            reply = await client.chat.completions.create(**fields, stop=stop)
            stream = await client.chat.completions.create(**fields, stop=stop, stream=True)
            assert reply.choices[0].finish_reason == spoken([one async for one in stream])[3] == want
            assert len(reply.choices[0].message.tool_calls or ()) == 1


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({"id": "1", "type": "custom", "custom": {"name": "x", "input": ""}}, "function"),
        ({"id": "1", "type": "function", "function": {"arguments": "{}"}}, "function.name"),
        ({"id": "1", "type": "function", "function": {"name": "now", "arguments": [1]}}, "function.arguments"),
    ],
)
async def test_past_calls_that_say_nothing(http: httpx.AsyncClient, call: dict[str, Any], param: str) -> None:
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    reply = await http.post("/v1/chat/completions", json={"messages": messages})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == f"messages[1].tool_calls[0].{param}"


@pytest.mark.parametrize("arguments", [{"arguments": ""}, {"arguments": None}, {}, {"arguments": "{"}])
async def test_past_arguments_may_be_anything(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """A model wrote them, and an agent's loop has to go on."""
    template = THINKING.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}",
    )
    async with served(tmp_path, template) as (_, engine, text, http):
        call = {"id": "1", "type": "function", "function": {"name": "now", **arguments}}
        messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "noon"}]
        reply = await http.post("/v1/chat/completions", json={"messages": messages, "tools": [NOW], "max_tokens": 5})
        assert reply.status_code == 200, reply.text
        written = '"{"' if arguments.get("arguments") == "{" else "{}"
        assert f"assistant\n{written}<|im_end|>" in prompt_of(engine, text)


async def test_counted(tmp_path: Path) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, http):
        says(engine, text, TWO + '\n<tool_call>{"name": "now", "arguments": {')
        await client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER, NOW])  # type: ignore[list-item]
        told = (await http.get("/metrics")).text
        assert 'sapwood_tool_calls_total{result="read"} 2.0' in told
        assert 'sapwood_tool_calls_total{result="malformed"} 1.0' in told


async def test_past_calls_reach_the_template(tmp_path: Path) -> None:
    template = THINKING.replace(
        "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}"
    )
    async with served(tmp_path, template) as (client, engine, text, _):
        call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
        messages: list[Any] = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ]
        await client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])  # type: ignore[list-item]
        assert "assistant\nBonn<|im_end|>\n<|im_start|>tool\nrain" in prompt_of(engine, text)


async def test_calls_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path
    text = make_text(path, THINKING)
    silent = TextModel.load(_files(path), tool_parser="none")
    engine = FakeEngine(text, max_model_len=2048)
    says(engine, text, TWO)
    app = create_app(engine, silent, Config(), MODEL)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        body = {"messages": HELLO, "tools": [NOW]}
        reply = (await http.post("/v1/chat/completions", json=body)).json()
        assert reply["choices"][0]["message"]["content"] == TWO
        reply = (await http.post("/v1/chat/completions", json=body | {"tool_choice": "required"})).json()
        assert reply["error"]["param"] == "tool_choice" and "--tool-parser none" in reply["error"]["message"]


def _files(path: Path) -> Any:
    from sapwood.hub.files import ModelFiles

    return ModelFiles(MODEL, path, "hf", {}, {})


@pytest.mark.parametrize(("tags", "valid"), [(["a", "b"], True), (["a", "a"], False)])
async def test_arguments_are_checked_where_no_grammar_follows_their_schema(
    tmp_path: Path, tags: list[str], valid: bool
) -> None:
    unique = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    label = tool("label", parameters={"type": "object", "properties": {"tags": unique}, "required": ["tags"]})
    call = json.dumps({"name": "label", "arguments": {"tags": tags}})
    async with served(tmp_path, THINKING) as (_, engine, text, http):
        says(engine, text, f"<tool_call>\n{call}\n</tool_call>")
        body = {"model": MODEL, "messages": HELLO, "tools": [WEATHER, label], "tool_choice": "required"}
        (choice,) = (await http.post("/v1/chat/completions", json=body)).json()["choices"]
        assert choice["finish_reason"] == "tool_calls" and choice["schema_check"]["valid"] == valid
        label["function"]["strict"] = True
        reply = await http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "tools[1].function.parameters"
