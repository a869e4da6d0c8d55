"""A request that has not finished in its time ends, streamed or not, waiting or running, and nothing of it goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from sapwood.config import Config
from sapwood.config.options import ServerConfig
from tests.server.fakes import FakeEngine
from tests.waiting import within

pytestmark = pytest.mark.anyio

BODY = {"prompt": "x", "max_tokens": 8}
CHAT = {"messages": [{"role": "user", "content": "x"}]}
SOON = {"X-Request-Timeout": "0.05"}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", BODY), ("/v1/chat/completions", CHAT), ("/generate", {"text": "x"})]
)
async def test_before_the_first_token(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    engine.delay = 3600.0
    for stream in (False, True):
        reply = await within(http.post(path, json=body | {"stream": stream}, headers=SOON))
        assert (reply.status_code, reply.headers["x-should-retry"]) == (504, "false")
        assert reply.json()["error"]["code"] == "deadline_exceeded" and "0.05 s" in reply.text
    assert (engine.running, engine.broken_off) == (0, 2)


async def test_in_the_middle_of_a_stream(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    reply = await within(http.post("/v1/completions", json=BODY | {"stream": True, "timeout": 0.05}))
    assert reply.status_code == 200 and '"deadline_exceeded"' in reply.text
    assert reply.text.endswith("data: [DONE]\n\n") and engine.running == 0


async def test_one_request_has_not_the_time_of_another(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await http.post("/v1/completions", json=BODY, headers={"X-Request-Timeout": "3600"})).status_code == 200
    engine.hold = asyncio.Event()
    slow = asyncio.create_task(http.post("/v1/completions", json=BODY))
    await engine.until_running(1)
    assert (await within(http.post("/v1/completions", json=BODY, headers=SOON))).status_code == 504
    assert not slow.done()
    engine.hold.set()
    assert (await within(slow)).status_code == 200


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
async def test_what_is_no_time_is_refused(http: httpx.AsyncClient, value: str) -> None:
    reply = await http.post("/v1/completions", json=BODY, headers={"X-Request-Timeout": value})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "X-Request-Timeout"
    reply = await http.post("/v1/completions", json=BODY | {"timeout": 0})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "timeout"


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (Config(server=ServerConfig(request_seconds=0.05)), None),
        (Config(server=ServerConfig(max_request_seconds=0.05)), None),
        (Config(server=ServerConfig(max_request_seconds=0.05)), "3600"),
        (Config(server=ServerConfig(request_seconds=3600.0)), "0.05"),
        (Config(server=ServerConfig(request_seconds=3600.0, max_request_seconds=0.05)), None),
    ],
)
async def test_the_servers_own_times(http: httpx.AsyncClient, engine: FakeEngine, asked: str | None) -> None:
    engine.delay = 3600.0
    headers = {} if asked is None else {"X-Request-Timeout": asked}
    assert (await within(http.post("/v1/completions", json=BODY, headers=headers))).status_code == 504
