"""Responses that are kept: found again, continued, deleted, run in the background, and lost with their server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from sapwood.base.errors import GenerationFailed
from sapwood.config import Config
from sapwood.config.flags import from_options
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine
from tests.server.test_responses import ANSWER
from tests.server.test_tools import prompt_of
from tests.waiting import SECONDS

pytestmark = pytest.mark.anyio


async def over(client: AsyncOpenAI, id: str) -> Any:
    """The response once it has ended."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = await client.responses.retrieve(id)
            if found.status not in ("queued", "in_progress"):
                return found
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_found_again(client: AsyncOpenAI, stream: bool) -> None:
    if stream:
        events = [event async for event in await client.responses.create(model=MODEL, input="hello", stream=True)]
        made = events[-1].response  # type: ignore[union-attr]
    else:
        made = await client.responses.create(model=MODEL, input="hello")
    assert await client.responses.retrieve(made.id) == made
    await client.responses.delete(made.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(NotFoundError, match="There is no response"):
            await gone(made.id)


async def test_conversations(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    first = await client.responses.create(model=MODEL, input="one", instructions="Once.")
    second = await client.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    third = await client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "three"}], previous_response_id=second.id, store=False
    )
    assert third.previous_response_id == second.id
    turns = "".join(
        f"user\n{turn}<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>\n<|im_start|>" for turn in ("one", "two")
    )
    assert prompt_of(engine, text) == f"<|im_start|>{turns}user\nthree<|im_end|>\n<|im_start|>assistant\n"
    page = await client.responses.input_items.list(second.id, order="asc", limit=2)
    assert [item.content[0].text for item in page.data] == ["one", ANSWER] and page.has_more  # type: ignore[union-attr]
    rest = await client.responses.input_items.list(second.id, order="asc", after=page.data[-1].id)  # type: ignore[arg-type]
    assert [item.content[0].text for item in rest.data] == ["two"]  # type: ignore[union-attr]
    newest = [item async for item in client.responses.input_items.list(second.id)]
    assert [item.id for item in newest] == [item.id for item in [*page.data, *rest.data]][::-1]
    await client.responses.delete(first.id)
    with pytest.raises(BadRequestError, match="previous_response_id: there is no response"):
        await client.responses.create(model=MODEL, input="x", previous_response_id=second.id)


async def test_background(client: AsyncOpenAI, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    made = await client.responses.create(model=MODEL, input="hello", background=True)
    assert made.status == "queued" and made.background
    await engine.until_running(1)
    with pytest.raises(BadRequestError, match="not complete yet"):
        await client.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    following = asyncio.create_task(client.responses.retrieve(made.id, stream=True))
    await asyncio.sleep(0)
    engine.hold.set()
    events = [event async for event in await following]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    done = await over(client, made.id)
    assert done.output_text == ANSWER and done.id == made.id
    again = [event async for event in await client.responses.retrieve(made.id, stream=True, starting_after=4)]
    assert again == events[5:]
    assert [
        e async for e in await client.responses.retrieve(made.id, stream=True, starting_after=len(events) - 1)
    ] == []
    assert await client.responses.cancel(made.id) == done
    next = await client.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    assert next.status == "completed"


async def test_a_background_stream_that_is_left(client: AsyncOpenAI, engine: FakeEngine) -> None:
    stream = await client.responses.create(model=MODEL, input="hello", background=True, stream=True)
    first = await anext(aiter(stream))
    await stream.close()  # whoever goes away takes up the thread later
    assert first.type == "response.created"
    done = await over(client, first.response.id)
    assert done.output_text == ANSWER


@pytest.mark.parametrize("begun", [False, True])
async def test_cancelling(client: AsyncOpenAI, engine: FakeEngine, begun: bool) -> None:
    engine.hold = asyncio.Event()
    made = await client.responses.create(model=MODEL, input="hello", background=True)
    if begun:
        await engine.until_running(1)
    cancelled = await client.responses.cancel(made.id)
    await engine.until_running(0)
    assert cancelled.status == "cancelled" and await client.responses.retrieve(made.id) == cancelled
    other = await client.responses.create(model=MODEL, input="hello", background=True)
    await client.responses.delete(other.id)
    await engine.until_running(0)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(other.id)


async def test_a_background_that_fails(client: AsyncOpenAI, engine: FakeEngine) -> None:
    engine.failure = GenerationFailed("It broke.")
    made = await client.responses.create(model=MODEL, input="hello", background=True)
    failed = await over(client, made.id)
    assert failed.status == "failed" and failed.error.message == "It broke."
    events = [event async for event in await client.responses.retrieve(made.id, stream=True)]
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]


async def test_only_the_background_is_streamed_again_or_cancelled(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model=MODEL, input="hello")
    with pytest.raises(BadRequestError, match="background: true can be cancelled"):
        await client.responses.cancel(made.id)
    with pytest.raises(BadRequestError, match="background: true can be streamed"):
        await client.responses.retrieve(made.id, stream=True)
    for query in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "msg_1"}):
        reply = await client._client.get(f"/v1/responses/{made.id}/input_items", params=query)
        assert reply.status_code == 400 and reply.json()["error"]["param"] in query


async def test_survival(engine: FakeEngine, text: TextModel, tmp_path: Path) -> None:
    """What is stored in a directory is there for the next server; what was running is known to be lost."""
    config = from_options({"state_dir": str(tmp_path / "state")})

    async def served(config: Config) -> tuple[Any, AsyncOpenAI]:
        app = create_app(engine, text, config, MODEL)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
        return app, AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0)

    app, client = await served(config)
    made = await client.responses.create(model=MODEL, input="one")
    lost = made.to_dict() | {"id": "resp_lost", "status": "in_progress", "output": []}
    body = msgspec.json.encode(lost).decode()
    await app.state.front.store.run(lambda books: books.put("response", "", "resp_lost", body, b'{"input":[]}'))
    await app.state.front.close()
    app, client = await served(config)
    assert await client.responses.retrieve(made.id) == made
    await client.responses.create(model=MODEL, input="two", previous_response_id=made.id)
    found = await client.responses.retrieve("resp_lost")
    assert found.status == "failed" and found.error is not None and "restarted" in found.error.message
    await app.state.front.close()
