"""Chats that are kept: the same whether they were streamed, found by page and label, changed, deleted."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine
from tests.server.test_chat import ANSWER, HELLO
from tests.server.test_tools import NOW, TWO, WEATHER, says

pytestmark = pytest.mark.anyio


async def kept(client: AsyncOpenAI, **fields: Any) -> Any:
    return await client.chat.completions.create(model=MODEL, messages=HELLO, store=True, **fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tools", [False, True])
async def test_found_again(client: AsyncOpenAI, engine: FakeEngine, text: TextModel, stream: bool, tools: bool) -> None:
    engine.facts = msgspec.structs.replace(engine.facts, max_model_len=4096)
    fields: dict[str, Any] = {"n": 2, "logprobs": True, "top_logprobs": 1, "seed": 3, "metadata": {"a": "b"}}
    if tools:
        says(engine, text, TWO)
        fields |= {"tools": [WEATHER, NOW]}
    if stream:
        chunks = [chunk async for chunk in await kept(client, stream=True, **fields)]
        id = chunks[0].id
    else:
        whole = await kept(client, **fields)
        id = whole.id
    found = await client.chat.completions.retrieve(id)
    assert (found.id, found.object, found.metadata, found.seed) == (id, "chat.completion", {"a": "b"}, 3)  # type: ignore[attr-defined]
    assert [choice.index for choice in found.choices] == [0, 1] and found.usage is not None
    for choice in found.choices:
        assert choice.message.content == ("I look." if tools else ANSWER)
        assert choice.logprobs is not None and choice.logprobs.content
        if tools:
            assert choice.finish_reason == "tool_calls"
            calls: Any = choice.message.tool_calls
            assert [(c.function.name, c.function.arguments) for c in calls] == [
                ("weather", '{"city": "Köln"}'), ("now", "{}"),
            ]  # fmt: skip
            if stream:
                told = [
                    c.id
                    for k in chunks
                    for x in k.choices
                    for c in x.delta.tool_calls or ()
                    if c.id and x.index == choice.index
                ]
                assert told == [call.id for call in calls]
    if not stream:
        assert [choice.to_dict() for choice in found.choices] == [choice.to_dict() for choice in whole.choices]
        assert found.usage == whole.usage


async def test_lists_and_labels(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    chats = [await kept(client, metadata={"number": str(number), "all": "yes"}) for number in range(3)]
    await client.chat.completions.create(model=MODEL, messages=HELLO)
    ids = [chat.id for chat in chats]
    assert [chat.id async for chat in client.chat.completions.list(limit=2)] == ids
    assert [chat.id async for chat in client.chat.completions.list(limit=1, order="desc")] == ids[::-1]
    assert [chat.id async for chat in client.chat.completions.list(metadata={"number": "1", "all": "yes"})] == ids[1:2]
    assert [chat async for chat in client.chat.completions.list(model="other")] == []
    changed = await client.chat.completions.update(ids[1], metadata={"number": "9"})
    assert changed.metadata == {"number": "9"}  # type: ignore[attr-defined]
    assert [chat.id async for chat in client.chat.completions.list(metadata={"number": "9"})] == ids[1:2]
    gone = await client.chat.completions.delete(ids[0])
    assert gone.deleted and gone.id == ids[0]
    with pytest.raises(NotFoundError, match="There is no chat"):
        await client.chat.completions.retrieve(ids[0])
    with pytest.raises(BadRequestError, match="after: there is nothing"):
        await client.chat.completions.list(after=ids[0])
    for odd in ("\0", '"', "$", "\\", "]["):
        label: dict[str, str] = {f"a{odd}": "x"}
        chat = await kept(client, metadata=label)
        assert [found.id async for found in client.chat.completions.list(metadata=label)] == [chat.id]
    for query in ({"limit": 101}, {"order": "up"}, {f"metadata[{n}]": "" for n in range(18)}):
        assert (await http.get("/v1/chat/completions", params=query)).status_code == 400
    for labels in ({"metadata": {"a": 1}}, {"metadata": {"a": "b" * 513}}, {"metadata": {"x" * 65: ""}}):
        assert (await http.post(f"/v1/chat/completions/{ids[1]}", json=labels)).status_code == 400
    assert (await http.post("/v1/chat/completions", json={"messages": HELLO} | labels)).status_code == 400


async def test_messages(client: AsyncOpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "me"},
    ]
    chat = await client.chat.completions.create(model=MODEL, messages=messages, store=True)
    found = [one async for one in client.chat.completions.messages.list(chat.id, limit=1)]
    assert [(one.id, one.role, one.content) for one in found] == [
        (f"{chat.id}-0", "system", "Be brief."), (f"{chat.id}-1", "user", None),
    ]  # fmt: skip
    assert found[1].content_parts is not None and found[1].content_parts[0].text == "hello"  # type: ignore[union-attr]
