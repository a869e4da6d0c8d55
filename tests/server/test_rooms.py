"""A room words its errors itself: what the gate refuses, what a route refuses, and what happens in the middle of a stream."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sapwood.base.errors import GenerationFailed, RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import create_app
from sapwood.server.app import ROOMS
from sapwood.server.errors import Problem
from sapwood.server.front import Front
from sapwood.server.generation import News, Prompt, choices_of
from sapwood.server.rooms import Room
from sapwood.server.sse import EventStream, Script
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine, overloaded

pytestmark = pytest.mark.anyio


def worded(told: Problem, request_id: str) -> bytes:
    return msgspec.json.encode({"fault": told.message, "of": told.param, "id": request_id})


class Lines(Script):
    media = "application/x-ndjson"

    def __init__(self, *, break_at: int) -> None:
        self._left = break_at

    def frames(self, news: list[News]) -> bytes:
        self._left -= 1
        if not self._left:
            raise GenerationFailed("The rest is lost.")
        return b'{"text": 1}\n'

    def last(self) -> bytes:
        return b'{"done": true}\n'

    def failed(self, error: bytes) -> bytes:
        return error + b"\n"


def routes(front: Front) -> list[Route]:
    async def lines(request: Request) -> Response:
        break_at = int(request.query_params["break_at"])
        if break_at < 0:
            raise RequestError("break_at must not be negative.", param="break_at")
        prompt = Prompt([1, 2, 3], "prompt", "", 0)
        choices = choices_of([(prompt, SamplingParams(max_tokens=4, ignore_eos=True))])
        return EventStream(front, choices, Lines(break_at=break_at))

    return [Route("/lines", lines, methods=["POST"]), Route("/lines/{name}", lines, methods=["POST"])]


ROOM = Room(routes, worded, overloaded=529, ids=("x-request-id", "lines-id"), known_by="x-lines")


@pytest.fixture
async def http(engine: FakeEngine, text: TextModel) -> Any:
    app = create_app(engine, text, Config(server=ServerConfig(api_key="sesam")), MODEL, rooms=(*ROOMS, ROOM))
    headers = {"x-api-key": "sesam", "x-request-id": "r1"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test", headers=headers
    ) as client:
        yield client
    await app.state.front.close()


async def test_a_stream_has_its_media_its_frames_and_its_end(http: httpx.AsyncClient) -> None:
    reply = await http.post("/lines?break_at=0")
    assert reply.headers["content-type"] == "application/x-ndjson"
    *frames, last = reply.text.splitlines()
    assert frames and set(frames) == {'{"text": 1}'} and last == '{"done": true}'


async def test_errors_are_worded_by_the_room(http: httpx.AsyncClient) -> None:
    wrong = await http.post("/lines?break_at=-1")
    assert wrong.status_code == 400
    assert wrong.json() == {"fault": "break_at must not be negative.", "of": "break_at", "id": "r1"}
    broken = (await http.post("/lines?break_at=2")).text.splitlines()
    assert broken[0] == '{"text": 1}'
    assert msgspec.json.decode(broken[1])["fault"] == "The rest is lost." and len(broken) == 2


@pytest.mark.parametrize("path", ["/lines", "/lines/one"])
async def test_the_gate_and_the_router_use_the_rooms_words(http: httpx.AsyncClient, path: str) -> None:
    refused = await http.post(path, headers={"x-api-key": "nope"})
    assert refused.status_code == 401 and "API key" in refused.json()["fault"]
    method = await http.get(path)
    assert method.status_code == 405 and "not allowed" in method.json()["fault"]


async def test_other_paths_have_openais(http: httpx.AsyncClient) -> None:
    missing = await http.post("/line")
    assert missing.status_code == 404 and missing.json()["error"]["message"] == "No such path: /line."


async def test_a_client_that_is_known_gets_its_rooms_words_on_every_path(http: httpx.AsyncClient) -> None:
    missing = await http.post("/line", headers={"x-lines": "1"})
    assert missing.status_code == 404 and missing.json()["fault"] == "No such path: /line."
    assert missing.headers["x-request-id"] == missing.headers["lines-id"] == "r1"


async def test_a_room_has_a_status_of_its_own_for_too_many_requests(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise overloaded()

    monkeypatch.setattr(engine, "submit", full)
    assert (await http.post("/lines?break_at=0")).status_code == 529
    reply = await http.post("/v1/completions", json={"prompt": "x"})
    assert reply.status_code == 503 and "retry-after" in reply.headers


async def test_a_key_comes_either_way(http: httpx.AsyncClient) -> None:
    for headers in ({"x-api-key": "sesam"}, {"x-api-key": "", "authorization": "Bearer sesam"}):
        assert (await http.post("/lines?break_at=0", headers=headers)).status_code == 200
