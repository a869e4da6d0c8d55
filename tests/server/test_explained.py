"""Why a prompt was found in the cache: asked for by a header, told in one."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

ASK = {"x-sapwood-explain-cache": "1"}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the cat sat on the mat"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the cat"}]},
    "/generate": {"text": "the cat sat on the mat"},
    "/v1/messages": {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4},
    "/v1/responses": {"input": "the cat"},
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_dialect_tells_it(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, path: str, stream: bool
) -> None:
    engine.replies["explain"] = {"cached": 2, "differs": 3, "instead": text.encode(" dog é")}
    reply = await http.post(path, json={"model": "tiny", "stream": stream} | ROUTES[path], headers=ASK)
    assert reply.status_code == 200, reply.text
    told = json.loads(reply.headers["x-sapwood-cache"])
    tokens = engine.asked[0].tokens
    assert told == {
        "prompt_tokens": len(tokens),
        "cached_tokens": 2,
        "differs_at": 3,
        "before": text.decode(tokens[:3], skip_special=False),
        "here": text.decode(tokens[3:15], skip_special=False),
        "instead": text.decode(text.encode(" dog é")[:12], skip_special=False),
    }


async def test_nobody_is_told_who_has_not_asked(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for headers in ({}, {"x-sapwood-explain-cache": "0"}):
        reply = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=headers)
        assert "x-sapwood-cache" not in reply.headers
    assert engine.controls == []


@pytest.mark.parametrize("config", [Config(server=ServerConfig(api_key="a,b", share_prefixes=True))])
async def test_what_may_be_another_s_is_not_told(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    engine.replies["explain"] = {"cached": 0, "differs": 0, "instead": text.encode("secret")}
    body = {"prompt": "x", "max_tokens": 1}
    reply = await http.post("/v1/completions", json=body, headers=ASK | {"x-api-key": "a"})
    assert json.loads(reply.headers["x-sapwood-cache"])["instead"] is None
