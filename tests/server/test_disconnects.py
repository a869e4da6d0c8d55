"""A client that hangs up has its generations ended at once, whether it streams or not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette

from sapwood.base.errors import Stopping
from tests.server.fakes import FakeEngine
from tests.waiting import within

pytestmark = pytest.mark.anyio

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["a", "b"], "n": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/generate": {"text": "x"},
}


class Caller:
    """An ASGI client that can hang up."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.sent: list[dict[str, Any]] = []
        self.heard = asyncio.Event()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.heard.set()

    async def call(self, app: Starlette) -> None:
        await app(self.scope, self._incoming.get, self.send)


@pytest.mark.parametrize("path", BODIES)
async def test_without_stream(app: Starlette, engine: FakeEngine, path: str) -> None:
    engine.hold = asyncio.Event()
    caller = Caller(path, BODIES[path])
    call = asyncio.create_task(caller.call(app))
    num_outputs = 4 if "prompt" in BODIES[path] else 1
    await engine.until_running(num_outputs)
    caller.hang_up()
    await within(call)
    assert (engine.running, engine.broken_off) == (0, num_outputs)


@pytest.mark.parametrize("path", BODIES)
async def test_in_the_middle_of_a_stream(app: Starlette, engine: FakeEngine, path: str) -> None:
    engine.hold = asyncio.Event()
    caller = Caller(path, BODIES[path] | {"stream": True})
    call = asyncio.create_task(caller.call(app))
    num_outputs = 4 if "prompt" in BODIES[path] else 1
    await engine.until_running(num_outputs)
    await within(caller.heard.wait())
    caller.hang_up()
    await within(call)
    assert (engine.running, engine.broken_off) == (0, num_outputs)


async def test_before_the_first_token(app: Starlette, engine: FakeEngine) -> None:
    engine.delay = 3600.0
    caller = Caller("/v1/completions", {"prompt": "x", "stream": True})
    call = asyncio.create_task(caller.call(app))
    await engine.until_running(1)
    caller.hang_up()
    await within(call)
    assert engine.running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_server_task(app: Starlette, engine: FakeEngine, stream: bool) -> None:
    engine.hold = asyncio.Event()
    caller = Caller("/v1/completions", {"prompt": "x", "stream": stream})
    call = asyncio.create_task(caller.call(app))
    await engine.until_running(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert engine.running == 0


async def test_the_server_ends_everything(app: Starlette, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    streaming = Caller("/v1/completions", {"prompt": "x", "stream": True})
    waiting = Caller("/v1/completions", {"prompt": "x"})
    calls = [asyncio.create_task(caller.call(app)) for caller in (streaming, waiting)]
    await within(streaming.heard.wait())
    await engine.until_running(2)
    app.state.front.end_all(Stopping())
    await within(asyncio.gather(*calls))
    assert engine.running == 0
    assert b"stopping" in streaming.sent[-1]["body"]
    assert streaming.sent[-1]["body"].endswith(b"data: [DONE]\n\n")
    assert waiting.sent[0]["status"] == 503
