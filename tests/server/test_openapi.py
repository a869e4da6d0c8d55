"""The document says what is served: all of it, in its own terms, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Route

from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.route.paths import CARRIED
from sapwood.server import create_app
from sapwood.server.app import ROOMS
from sapwood.server.errors import problem
from sapwood.server.routes import Described
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    told: dict[str, Any] = (await http.get("/openapi.json")).json()
    return told


def served(app: Starlette) -> set[tuple[str, str]]:
    routes = [route for route in app.routes if isinstance(route, Route)]
    return {(route.path_format, method) for route in routes for method in (route.methods or set()) - {"HEAD"}}


async def test_the_document_and_the_routes_are_the_same(app: Starlette, document: dict[str, Any]) -> None:
    told = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert told == served(app)


async def test_the_router_carries_all_that_is_answered_from_a_body_alone(app: Starlette) -> None:
    plain = {
        route.path_format
        for route in app.routes
        if isinstance(route, Described) and "POST" in (route.methods or ()) and route.told.body is not None
    }
    commands = re.compile(  # and what one server keeps
        r"weights|lora|sleep|wake|pause|resume|continue|release|abort|cache|/v1/(files|batches)|/models/|{"
    )
    assert {path for path in plain if not commands.search(path)} <= set(CARRIED)


async def test_it_is_valid(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    names = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(names) == len(set(names))


async def test_every_route_says_what_it_does(app: Starlette) -> None:
    for route in app.routes:
        assert isinstance(route, Described) and route.doc.strip(), (
            f"{route}: not described, or its handler has no docstring"
        )


async def test_bodies_and_answers_are_those_of_the_structs(document: dict[str, Any]) -> None:
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    assert "messages" in document["components"]["schemas"]["ChatRequest"]["properties"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "audio" in chat["x-refused-fields"]
    assert document["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["in"] == "path"


def test_errors_are_what_the_rooms_envelopes_make() -> None:
    for room in ROOMS:
        told = room.envelope(problem(ValueError("x")), "r1")
        assert msgspec.json.encode(msgspec.json.decode(told, type=room.error)) == told


MESSAGES = [{"role": "user", "content": "hi"}]
STREAMS: dict[str, dict[str, Any]] = {
    "/generate": {"text": "x", "return_logprob": True, "top_logprobs_num": 1},
    "/v1/chat/completions": {"messages": MESSAGES, "logprobs": True, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": "x", "logprobs": 1},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/responses": {"input": "x"},
    "/api/chat": {"model": MODEL, "messages": MESSAGES},
}


@pytest.mark.parametrize("path", STREAMS)
async def test_streams_are_as_they_are_described(http: httpx.AsyncClient, document: dict[str, Any], path: str) -> None:
    reply = await http.post(path, json=STREAMS[path] | {"stream": True})
    ((kind, told),) = (
        (kind, one["schema"])
        for kind, one in document["paths"][path]["post"]["responses"]["200"]["content"].items()
        if kind != "application/json"
    )
    assert reply.headers["content-type"].startswith(kind)
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line and not line.startswith("event: ")]
    schema = told if kind != "text/event-stream" else told["properties"]["data"]["anyOf"][0]
    validator = Draft202012Validator(schema["contentSchema"] | {"components": document["components"]})
    events = [msgspec.json.decode(line) for line in lines if line != "[DONE]"]
    assert len(events) > 2
    for event in events:
        validator.validate(event)


@pytest.mark.parametrize("key", [None, "sesam"])
async def test_keys_are_asked_for_where_there_are_some(engine: FakeEngine, text: TextModel, key: str | None) -> None:
    app = create_app(engine, text, Config(server=ServerConfig(api_key=key)), MODEL)
    transport, headers = httpx.ASGITransport(app=app), {"x-api-key": "sesam"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    guarded = {path for path, methods in paths.items() for one in methods.values() if one["security"]}
    admin = {path for path, methods in paths.items() for one in methods.values() if one.get("x-admin")}
    assert "/flush_cache" in admin and "/v1/models" not in admin
    assert guarded == (admin if key is None else {path for path in paths if not app.state.front.guard.open(path)})
    await app.state.front.close()


async def test_the_reference_page_shows_all_of_it(http: httpx.AsyncClient, document: dict[str, Any]) -> None:
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page.text
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text  # no other hosts
