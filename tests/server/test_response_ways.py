"""Whichever way a response is asked for, it says the same."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.server.fakes import MODEL
from tests.server.test_responses import LOGPROBS, NOW, PATCH, WEATHER, said
from tests.server.test_tools import SCHEMA, THINKING, served
from tests.waiting import SECONDS

pytestmark = pytest.mark.anyio

CALLS = (
    "<think>\nHm.\n</think>\n\nI look.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "patch", "arguments": {"input": "+x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "maps.now", "arguments": {}}\n</tool_call>'
)
MAPS: Any = {"type": "namespace", "name": "maps", "description": "", "tools": [NOW]}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "instructed": {"instructions": "Be brief.", "metadata": {"a": "b"}},
    "tools": {"tools": [WEATHER, PATCH, MAPS]},
    "one call": {"tools": [WEATHER, PATCH, MAPS], "parallel_tool_calls": False},
    "logprobs": {"include": [*LOGPROBS, "reasoning.encrypted_content"], "top_logprobs": 2, "tools": [WEATHER, PATCH]},
    "cut off": {"max_output_tokens": 9},
    "cut off in a call": {"max_output_tokens": 80, "tools": [WEATHER]},
    "formatted": {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    "fitted": {"truncation": "auto", "reasoning": {"effort": "low"}},
}


async def whole(client: AsyncOpenAI, fields: dict[str, Any]) -> Any:
    return await client.responses.create(model=MODEL, **fields)


async def not_stored(client: AsyncOpenAI, fields: dict[str, Any]) -> Any:
    return await client.responses.create(model=MODEL, store=False, **fields)


async def streamed(client: AsyncOpenAI, fields: dict[str, Any], **more: Any) -> Any:
    events: list[Any] = [e async for e in await client.responses.create(model=MODEL, stream=True, **fields, **more)]
    closed = [event.item for event in events if event.type == "response.output_item.done"]
    assert closed == events[-1].response.output
    return events[-1].response


async def background(client: AsyncOpenAI, fields: dict[str, Any]) -> Any:
    made = await client.responses.create(model=MODEL, background=True, **fields)
    async with asyncio.timeout(SECONDS):
        while made.status in ("queued", "in_progress"):
            await asyncio.sleep(0.01)
            made = await client.responses.retrieve(made.id)
    return made


async def streamed_in_the_background(client: AsyncOpenAI, fields: dict[str, Any]) -> Any:
    return await streamed(client, fields, background=True)


async def in_a_batch(client: AsyncOpenAI, fields: dict[str, Any]) -> Any:
    line = {"custom_id": "x", "method": "POST", "url": "/v1/responses", "body": {"model": MODEL, **fields}}
    file = await client.files.create(file=json.dumps(line).encode(), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    async with asyncio.timeout(SECONDS):
        while batch.status != "completed":
            await asyncio.sleep(0.01)
            batch = await client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    told = json.loads((await client.files.content(batch.output_file_id)).text)
    return await client.responses.retrieve(told["response"]["body"]["id"])


WAYS = [whole, not_stored, streamed, background, streamed_in_the_background, in_a_batch]


@pytest.mark.parametrize("feature", FEATURES)
async def test_ways(feature: str, tmp_path: Path) -> None:
    async with served(tmp_path, THINKING) as (client, engine, text, _):
        answer = [*text.encode(CALLS), text.eos_ids[0]]
        engine.answer = lambda tokens, params: answer
        fields = {"input": "hello", **FEATURES[feature]}
        told = []
        for engine.chunk, way in itertools.product((1, 7, 1000), WAYS):
            response = await way(client, fields)
            told.append((response.status, response.incomplete_details, said(response.output), response.usage))
            assert told[0][2] and told[-1] == told[0], (engine.chunk, way.__name__)
        assert len({tuple(asked.tokens) for asked in engine.asked}) == 1
        assert len({str(asked.params) for asked in engine.asked}) == 1
