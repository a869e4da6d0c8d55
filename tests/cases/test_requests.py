"""Requests at the edge of what is allowed, and HTTP as clients, proxies and browsers speak it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

TEXT, CHAT, NATIVE = "/v1/completions", "/v1/chat/completions", "/generate"
HELLO = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}

EDGES: dict[str, dict[str, Any]] = {
    "several that cannot differ": {"n": 3, "temperature": 0},
    "the least seed": {"seed": -(2**63)},
    "the largest seed": {"seed": 2**63 - 1},
    "top_k that leaves all": {"top_k": -1},
    "top_k that is not given": {"top_k": 0},
    "top_k of more than there are": {"top_k": 10**6},
    "both names of the length": {"max_tokens": 5, "max_completion_tokens": 2},
    "no biases": {"logit_bias": {}},
    "biases that are null": {"logit_bias": None},
    "biases at their bounds": {"logit_bias": {"5": -100, "6": 100, "7": 0.5}},
    "penalties at their bounds": {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1},
    "no stops": {"stop": []},
    "stops that are null": {"stop": None},
    "an integer written as a float": {"temperature": 1, "top_p": 1},
    "a field of a future version": {"verbosity": "low", "reasoning_effort": "low", "web_search_options": {}},
    "a zero in a text": {"messages": [{"role": "user", "content": "a\x00b"}]},
    "a user": {"user": "x", "metadata": {}, "store": False, "service_tier": "auto"},
}


@pytest.mark.parametrize("name", EDGES)
async def test_values_at_the_edge_are_taken(http: httpx.AsyncClient, name: str) -> None:
    reply = await http.post(CHAT, json=HELLO | EDGES[name])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        (None, 200),
        ("application/x-www-form-urlencoded", 415),
        ("text/xml", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
async def test_types_of_content(http: httpx.AsyncClient, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"content-type": kind}
    reply = await http.post(CHAT, content=json.dumps(HELLO).encode(), headers=headers)
    assert reply.status_code == status and reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (CHAT + "/", 307),
        ("//v1/chat/completions", 404),
        (CHAT + "?api-version=1", 200),
        ("/v1/v1/chat/completions", 404),
    ],
)
async def test_paths_that_are_put_together_wrongly(http: httpx.AsyncClient, path: str, status: int) -> None:
    reply = await http.post(f"http://test{path}", json=HELLO)
    assert reply.status_code == status
    if status == 307:
        assert reply.headers["location"].endswith(CHAT)


async def test_a_body_in_small_parts(http: httpx.AsyncClient) -> None:
    async def parts() -> Any:
        for byte in json.dumps(HELLO).encode():
            yield bytes([byte])

    reply = await http.post(CHAT, content=parts(), headers={"content-type": "application/json"})
    assert reply.status_code == 200


@pytest.mark.parametrize("name", ["org/model", "a model", "модель", "a%2Fb", "x" * 300])
async def test_a_model_may_have_any_name(engine: FakeEngine, text: TextModel, name: str) -> None:
    transport = httpx.ASGITransport(app=create_app(engine, text, Config(), name))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        reply = await http.post(CHAT, json=HELLO | {"model": name})
        assert (reply.status_code, reply.json()["model"]) == (200, name)
        (listed,) = (await http.get("/v1/models")).json()["data"]
        assert listed["id"] == name


@pytest.mark.parametrize("config", [Config(server=ServerConfig(api_key="sesam", cors_origins="*"))])
async def test_who_asks_before_he_asks_needs_no_key(http: httpx.AsyncClient) -> None:
    """Browsers send no key with the question whether they may."""
    asked = {"origin": "https://a.example", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    reply = await http.options(CHAT, headers=asked)
    assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] in ("*", "https://a.example")
    refused = await http.post(CHAT, json=HELLO, headers={"origin": "https://a.example"})
    assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers
    for form in ("Bearer sesam", "bearer sesam"):
        assert (await http.post(CHAT, json=HELLO, headers={"authorization": form})).status_code == 200


async def test_methods(http: httpx.AsyncClient, app: Starlette) -> None:
    assert (await http.head("/health")).status_code == 200
    for method in ("PUT", "DELETE", "PATCH"):
        assert (await http.request(method, CHAT, json=HELLO)).status_code == 405
