"""GET /live: what it tells, to whom, and how often the engine is asked for it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from sapwood.config import Config, ServerConfig
from sapwood.server import create_app, live
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio


def tree(text: TextModel, *labels: str) -> dict[str, object]:
    tokens = [text.encode(label) for label in labels]
    twigs = {"parent": [-1] * len(labels), "pages": [1] * len(labels), "label": tokens}
    return {"pages": len(labels), "twigs": twigs, "holders": {"7": 0}}


async def test_what_is_told(http: httpx.AsyncClient, client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    engine.replies["tree"] = {"done": True, "tree": tree(text, "the cat", "the dog", "the cat")}
    engine.replies["live"]["lanes"] = [{"id": 7, "phase": "output"}]
    await client.completions.create(model=MODEL, prompt="the", max_tokens=3)
    told = (await http.get("/live")).json()
    assert (told["model"], told["max_model_len"], told["pages"]) == (MODEL, 512, [[32, 20, 4]])
    assert told["lanes"] == [{"id": 7, "phase": "output"}]
    assert told["tree"]["twigs"]["label"] == ["the cat", "the dog", "the cat"] and told["tree"]["holders"] == {"7": 0}
    for name, count in (("first_token", 1), ("inter_token", 2)):
        latency = told["latency"][name]
        assert latency["bounds"][-1] is None and latency["counts"][-1] == count, name
        assert latency["counts"] == sorted(latency["counts"]) and len(latency["bounds"]) == len(latency["counts"])


async def test_the_tree_can_be_left_out(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    told = (await http.get("/live?tree=0")).json()
    assert "tree" not in told and engine.controls == ["live"]


async def test_many_who_look_ask_the_engine_once(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_FRESH", 1e6)
    replies = await asyncio.gather(*(http.get("/live") for _ in range(20)))
    assert sorted(engine.controls) == ["live", "tree"]
    assert len({reply.content for reply in replies}) == 1


async def test_a_tree_that_is_drawn_in_slices_is_asked_for_until_it_is_done(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = iter([{"done": False, "tree": None}] * 3 + [{"done": True, "tree": tree(text, "the cat")}])
    plain = engine.control

    async def control(what: str) -> dict[str, object]:
        return await plain(what) if what != "tree" else next(slices)

    monkeypatch.setattr(engine, "control", control)
    assert (await http.get("/live")).json()["tree"]["twigs"]["label"] == ["the cat"]


def test_rates_are_those_of_the_last_seconds() -> None:
    rates = live.Rates()
    counted = [(0.0, 0), (4.0, 100), (8.0, 300), (14.0, 400), (15.0, 10), (19.0, 30), (99.0, 50)]
    seen = [rates({"output_tokens": count, "others": 1}, now).get("output_tokens") for now, count in counted]
    assert seen == [None, 25, 37.5, 30, None, 5, None]


@pytest.fixture
async def locked(engine: FakeEngine, text: TextModel) -> Starlette:
    return create_app(
        engine, text, Config(server=ServerConfig(api_key="hidden", admin_api_key="the operator's")), MODEL
    )


async def test_where_there_are_keys_prompts_are_seen_by_the_operator_alone(
    locked: Starlette, engine: FakeEngine, text: TextModel
) -> None:
    engine.replies["tree"] = {"done": True, "tree": tree(text, "the secret")}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=locked), base_url="http://test") as http:
        assert (await http.get("/live")).status_code == 401 and not engine.controls
        for key, label in (("the operator's", ["the secret"]), ("hidden", None), ("the operator's", ["the secret"])):
            reply = await http.get("/live?begins=1", headers={"authorization": f"Bearer {key}"})
            twigs = reply.json()["tree"]["twigs"]
            assert twigs["label"] == label and (twigs["begin"] is None) == (label is None)
            assert ("secret" in reply.text) == (label is not None)


async def test_an_engine_that_is_gone(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.dead = "killed by signal 9"
    reply = await http.get("/live")
    assert reply.status_code == 503 and "signal 9" in reply.json()["error"]["message"]
