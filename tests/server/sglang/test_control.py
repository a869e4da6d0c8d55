"""Pausing and going on, by the routes of both peers; what the engine makes of it is told in its own tests."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_flush_cache(http: httpx.AsyncClient, engine: FakeEngine, method: str) -> None:
    assert (await http.request(method, "/flush_cache")).json() == {"freed_pages": 3}
    assert engine.controls == ["flush_cache"]


@pytest.mark.parametrize(
    ("path", "body", "controls"),
    [
        ("/pause_generation", None, ["pause"]),
        ("/pause_generation", {"mode": "in_place"}, ["pause"]),
        ("/pause_generation", {"mode": "retract"}, ["pause", "retract"]),
        ("/continue_generation", None, ["continue"]),
        ("/pause", None, ["pause", "flush_cache"]),
        ("/pause?mode=keep", None, ["pause"]),
        ("/pause?mode=abort&clear_cache=false", None, ["pause"]),
        ("/pause?mode=wait&clear_cache=false", None, ["hold", "status", "pause"]),
        ("/pause?wait_for_inflight_requests=true", None, ["hold", "status", "pause", "flush_cache"]),
        ("/resume", None, ["continue"]),
        ("/reset_prefix_cache", None, ["flush_cache"]),
        ("/reset_prefix_cache?reset_running_requests=true", None, ["retract", "flush_cache"]),
        ("/reset_mm_cache", None, []),
        ("/reset_encoder_cache", None, ["flush_encoders"]),
    ],
)
async def test_what_the_engine_is_told(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, str] | None, controls: list[str]
) -> None:
    reply = await http.post(path, json=body) if body is not None else await http.post(path)
    assert reply.status_code == 200, reply.text
    assert engine.controls == controls


async def test_unknown_modes_are_named(http: httpx.AsyncClient) -> None:
    for reply in (await http.post("/pause_generation", json={"mode": "x"}), await http.post("/pause?mode=x")):
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "mode")


async def test_who_is_under_way_ends_or_stays(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    asked = asyncio.create_task(http.post("/v1/completions", json={"prompt": "x", "max_tokens": 9}))
    await engine.until_running(1)
    await http.post("/pause_generation", json={"mode": "in_place"})
    assert engine.running == 1 and (await http.get("/load")).json() == {"server_load": 1}
    await http.post("/pause_generation")
    choice = (await asked).json()["choices"][0]
    assert choice["finish_reason"] == "abort" and (await http.get("/load")).json() == {"server_load": 0}


async def test_waiting_is_over_when_only_those_are_left_that_are_held(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.replies["status"] |= {"running": 1, "waiting": 2, "held": 1}
    asked = asyncio.create_task(http.post("/pause?mode=wait"))
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert "pause" not in engine.controls
    engine.replies["status"] |= {"running": 0, "waiting": 1}
    assert (await asked).json() == {"status": "paused"} and "pause" in engine.controls


async def test_whether_it_is_paused(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await http.get("/is_paused")).json() == {"is_paused": False}
    engine.replies["status"]["paused"] = True
    assert (await http.get("/is_paused")).json() == {"is_paused": True}
