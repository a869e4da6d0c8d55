"""What bodies say of prompts that go from server to server, in every dialect, and what is answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from sapwood.base.handoff import Door, Fetch, Offer
from sapwood.config.flags import from_options
from sapwood.config.handoff import trusted
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": MODEL, "prompt": "hello", "max_tokens": 3},
    "/v1/messages": CHAT,
    "/api/chat": {**CHAT, "stream": False},
    "/generate": {"text": "hello", "sampling_params": {"max_new_tokens": 3}},
}
FETCH = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": 7, "remote_request_id": "t"}
pytestmark = pytest.mark.anyio

Served = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, FakeEngine]]]


@pytest.fixture
def served(text: TextModel) -> Served:
    """A server of a role, and its engine."""

    @asynccontextmanager
    async def made(role: str | None, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
        engine = FakeEngine(text)
        door = None if role is None else Door(role, "e", "10.0.0.1", 99)
        engine.facts = msgspec.structs.replace(engine.facts, door=door)
        app = create_app(engine, text, from_options(options | ({"role": role} if role else {})), MODEL)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
            yield http, engine
        await app.state.front.close()

    return made


@pytest.mark.parametrize("path", sorted(BODIES))
async def test_a_prompt_is_read_for_another_and_taken_up_there(path: str, served: Served) -> None:
    async with served("both") as (http, engine):
        answer = await http.post(path, json=BODIES[path] | {"kv_transfer_params": {"do_remote_decode": True}})
        assert answer.status_code == 200, answer.text
        (offer,) = engine.handed
        assert isinstance(offer, Offer) and offer.ticket
        told = json.loads(answer.headers["x-sapwood-kv-transfer"])
        assert told == {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": "e",
            "remote_block_ids": None,
            "remote_host": "10.0.0.1",
            "remote_port": 99,
            "remote_request_id": offer.ticket,
        }
        if path in ("/v1/chat/completions", "/v1/completions"):
            assert answer.json()["kv_transfer_params"] == told
    async with served("decode", transfer_peer="10.0.0.1:99") as (http, engine):
        answer = await http.post(path, json=BODIES[path] | {"kv_transfer_params": told})
        assert answer.status_code == 200 and "x-sapwood-kv-transfer" not in answer.headers
        assert engine.handed == [Fetch(offer.ticket, "10.0.0.1", 99)]


async def test_rooms(served: Served) -> None:
    """Both sides hear of a prompt at once, by a number."""
    room = {"bootstrap_host": "localhost", "bootstrap_port": 12, "bootstrap_room": 7}
    async with served("prefill") as (http, engine):
        assert (await http.post("/generate", json=BODIES["/generate"] | room)).status_code == 200
        assert engine.handed == [Offer("room-7")]
    async with served("decode") as (http, engine):
        del room["bootstrap_port"]
        assert (await http.post("/v1/chat/completions", json=CHAT | room)).status_code == 200
        assert engine.handed == [Fetch("room-7", "localhost", 8998, True)]


async def test_others_are_answered_as_ever(served: Served) -> None:
    async with served("both") as (http, engine):
        for params in (None, {}, {"do_remote_decode": False, "do_remote_prefill": False, "tp_size": 1}):
            answer = await http.post("/v1/chat/completions", json=CHAT | {"kv_transfer_params": params})
            assert answer.status_code == 200 and "kv_transfer_params" not in answer.json()
        assert engine.handed == [None] * 3


@pytest.mark.parametrize(
    ("role", "fields", "param"),
    [
        (None, {"kv_transfer_params": FETCH}, "kv_transfer_params"),
        ("decode", {"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params.do_remote_decode"),
        ("prefill", {"kv_transfer_params": FETCH}, "kv_transfer_params.do_remote_prefill"),
        ("both", {"kv_transfer_params": FETCH | {"do_remote_decode": True}}, "kv_transfer_params"),
        ("both", {"kv_transfer_params": FETCH | {"remote_host": None}}, "kv_transfer_params.remote_host"),
        ("both", {"kv_transfer_params": FETCH | {"remote_port": 70000}}, "kv_transfer_params.remote_port"),
        ("both", {"kv_transfer_params": FETCH | {"remote_port": "x"}}, "kv_transfer_params.remote_port"),
        ("both", {"kv_transfer_params": FETCH | {"remote_host": "10.0.0.1"}}, "kv_transfer_params.remote_host"),
        ("both", {"kv_transfer_params": 3}, "kv_transfer_params"),
        ("both", {"bootstrap_room": 3}, "bootstrap_room"),
        ("decode", {"bootstrap_room": 3}, "bootstrap_host"),
        ("decode", {"bootstrap_room": 3, "bootstrap_host": "elsewhere"}, "bootstrap_host"),
        ("decode", {"bootstrap_room": [3], "bootstrap_host": "localhost"}, "bootstrap_room"),
    ],
    ids=str,
)
async def test_what_is_refused_names_the_field(
    role: str | None, fields: dict[str, Any], param: str, served: Served
) -> None:
    async with served(role) as (http, engine):
        answer = await http.post("/v1/chat/completions", json=CHAT | fields)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param and not engine.handed


def test_whom_prompts_are_taken_from() -> None:
    options = from_options({"transfer_peer": "one,two:5,[fe80::1]:6"}).stores
    assert all(trusted(options, host, 9) for host in ("127.0.0.1", "::1", "localhost", "one"))
    assert trusted(options, "two", 5) and trusted(options, "fe80::1", 6)
    assert not trusted(options, "two", 6) and not trusted(options, "three", 5)
    assert trusted(from_options({"transfer_peer": "*"}).stores, "anybody", 1)
