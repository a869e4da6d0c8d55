"""Speculative prefill over HTTP: answers say that something was left out of the prompt, and how much."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sapwood.config import Config
from sapwood.config.flags import from_options
from tests.server.fakes import FakeEngine
from tests.server.test_predictions import CHAT, COMPLETIONS, GENERATE, MESSAGES, OLLAMA_CHAT, RESPONSES, body_of

pytestmark = pytest.mark.anyio

HEADER = "x-sapwood-speculative-prefill"


@pytest.fixture
def config() -> Config:
    return from_options({"speculative_prefill": 0.25, "speculative_prefill_model": "small"})


def left_out(reply: dict[str, Any]) -> int | None:
    told = reply["meta_info"] if "meta_info" in reply else reply["usage"]
    told = told.get("prompt_tokens_details") or told.get("input_tokens_details") or told
    found: int | None = told.get("left_out_tokens", told.get("left_out_input_tokens"))
    return found


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, GENERATE, RESPONSES, MESSAGES])
async def test_usage_and_a_header_tell(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    engine.left_out = 7
    reply = await http.post(path, json=body_of(path))
    assert reply.headers[HEADER] == "0.25" and left_out(reply.json()) == 7
    engine.left_out = 0
    assert left_out((await http.post(path, json=body_of(path))).json()) is None


async def test_a_stream_tells_before_it_begins(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.left_out = 7
    body = body_of(CHAT, stream=True, stream_options={"include_usage": True})
    reply = await http.post(CHAT, json=body)
    assert reply.headers[HEADER] == "0.25" and '"left_out_tokens":7' in reply.text
    assert (await http.post(OLLAMA_CHAT, json=body_of(OLLAMA_CHAT))).headers[HEADER] == "0.25"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_prompt_may_be_whole(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    reply = await http.post(path, json=body_of(path, whole_prompt=True))
    assert HEADER not in reply.headers and engine.asked[0].params.whole_prompt


@pytest.mark.parametrize("config", [Config(), from_options({"speculative_prefill": 1.0})], ids=["off", "all"])
async def test_where_nothing_is_left_out_nothing_is_said(http: httpx.AsyncClient) -> None:
    reply = await http.post(CHAT, json=body_of(CHAT))
    assert HEADER not in reply.headers and left_out(reply.json()) is None
