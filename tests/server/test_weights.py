"""Weights updated and memory given back over HTTP, on a small engine in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sapwood import LLM
from sapwood.engine.inprocess import InProcess
from sapwood.engine.tasks import end
from sapwood.server import create_app
from tests.engine.test_renewal import OPTIONS, other
from tests.server.fakes import FakeEngine
from tests.waiting import within

pytestmark = pytest.mark.anyio

ADMIN = {"authorization": "Bearer secret"}
MOST = 24


async def drive(engine: InProcess) -> None:
    """As the engine's own process would."""
    while True:
        engine.step()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def served(model: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    llm = LLM(str(model), **(OPTIONS | {"max_num_seqs": 8, "admin_api_key": "secret"} | options))
    engine = InProcess(llm._engine, llm.engine.facts)
    app = create_app(engine, llm.text, llm.config, "tiny")
    driving = asyncio.create_task(drive(engine))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN) as http:
        try:
            yield http
        finally:
            await end(driving)
            await app.state.front.close()


async def ask(http: httpx.AsyncClient, number: int) -> tuple[str, str, str]:
    """The text, why it ended, and by which weights."""
    body = {"prompt": f"{number}, and {number} more", "max_tokens": MOST, "temperature": 0, "ignore_eos": True}
    reply = (await http.post("/v1/completions", json=body)).raise_for_status().json()
    choice = reply["choices"][0]
    return choice["text"], choice["finish_reason"], reply.get("weight_version", "default")


async def all_of(http: httpx.AsyncClient) -> list[tuple[str, str, str]]:
    return await within(asyncio.gather(*(ask(http, number) for number in range(32))))


async def until_running(http: httpx.AsyncClient, since: int) -> None:
    """And some tokens have been said beside those that were before."""
    for _ in range(10_000):
        if (await state(http))["output_tokens"] >= since + 32:
            return
        await asyncio.sleep(0)
    raise AssertionError("nothing runs")


async def state(http: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get("/get_internal_state")).json()[0]
    return found


@pytest.mark.parametrize("mode", ["finish", "abort", "keep"])
async def test_an_update_while_many_requests_run(mode: str, tiny_model: Path, tmp_path: Path) -> None:
    new = other(tiny_model, tmp_path / "new")
    async with served(new) as http:
        after = [text for text, _, _ in await all_of(http)]
    async with served(tiny_model) as http:
        before = [text for text, _, _ in await all_of(http)]
        await http.post("/flush_cache")
        since = (await state(http))["output_tokens"]
        asked = asyncio.create_task(all_of(http))
        await within(until_running(http, since))
        body = {"model_path": str(new), "weight_version": "v2", "mode": mode}
        update = asyncio.create_task(http.post("/update_weights_from_disk", json=body))
        await asyncio.sleep(0)
        late = asyncio.create_task(ask(http, 3))  # comes while the update does
        told = await within(update)
        assert told.status_code == 200 and told.json()["weight_version"] == "v2"
        found, last = await asked, await within(late)
        assert (await http.get("/weight_version")).json() == {"weight_version": "v2"}
        again = await all_of(http)
    assert [text for text, _, _ in again] == after and {version for _, _, version in again} == {"v2"}
    assert len(found) == 32
    for number, (text, why, version) in enumerate(found):
        if why == "abort":
            assert mode == "abort" and before[number].startswith(text)
        elif version == "default":
            assert text == before[number]
        elif mode != "keep":
            assert text == after[number]
        else:
            assert len(text) > 0
    reasons = {why for _, why, _ in found}
    assert reasons == {"length"} if mode != "abort" else "abort" in reasons
    assert mode != "keep" or "v2" in {version for _, _, version in found}
    assert (last[0], last[2]) in ((before[3], "default"), (after[3], "v2"))


async def test_what_cannot_be_taken(tiny_model: Path, tmp_path: Path) -> None:
    async with served(tiny_model) as http:
        first = await ask(http, 1)
        bodies = [
            ("/update_weights_from_disk", {"model_path": str(tmp_path)}, "model_path"),
            ("/update_weights_from_tensor", {"path": "/nowhere.safetensors"}, "path"),
            ("/update_weights_from_tensor", {"path": "x", "serialized_named_tensors": ["gASV"]}, "serialized_named_tensors"),
        ]  # fmt: skip
        for path, body, param in bodies:
            reply = await http.post(path, json=body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
        assert await ask(http, 1) == first
        refused = await http.post("/sleep", headers={"authorization": "Bearer other"})
        assert refused.status_code in (401, 403)


async def test_sleep_and_waking(tiny_model: Path) -> None:
    async with served(tiny_model) as http:
        first = await ask(http, 1)
        for level in (1, 2):
            assert (await http.post(f"/sleep?level={level}")).json() == {"status": "asleep"}
            assert (await http.get("/is_sleeping")).json() == {"is_sleeping": True}
            asked = asyncio.create_task(ask(http, 1))  # waits
            assert (await http.post("/wake_up?tags=weights")).json() == {"status": "asleep"}
            assert not asked.done()
            assert (await http.post("/wake_up?tags=kv_cache")).json() == {"status": "awake"}
            assert await within(asked) == first
        assert (await http.post("/release_memory_occupation", json={"tags": ["kv_cache"]})).json() == {
            "released": ["kv_cache"]
        }
        assert (await http.post("/resume_memory_occupation")).json() == {"released": []}
        assert await ask(http, 1) == first
        for path in ("/sleep?level=3", "/wake_up?tags=x"):
            assert (await http.post(path)).status_code == 400


@pytest.mark.parametrize("mode", ["wait", "abort"])
async def test_an_engine_that_stood_still_goes_on_doing_so(mode: str, tiny_model: Path) -> None:
    async with served(tiny_model) as http:
        await http.post("/pause?mode=keep")
        asked = asyncio.create_task(ask(http, 1))
        assert (await within(http.post(f"/sleep?mode={mode}"))).json() == {"status": "asleep"}
        await http.post("/wake_up")
        assert (await http.get("/is_paused")).json() == {"is_paused": True}
        await http.post("/resume")
        assert (await within(asked))[1] in ("length", "abort")


async def test_who_is_refused_while_it_sleeps(tiny_model: Path) -> None:
    async with served(tiny_model) as http:
        app = http._transport.app  # type: ignore[attr-defined]
        app.state.front.engine._shut = True
        await http.post("/sleep")
        reply = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert (
            reply.status_code == 503 and "sleeps" in reply.json()["error"]["message"] and reply.headers["retry-after"]
        )
        await http.post("/wake_up")
        assert (await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})).status_code == 200


async def test_meta_info_has_the_version(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.weight_version = "v9"
    reply = await http.post("/generate", json={"text": "x", "sampling_params": {"max_new_tokens": 2, "stop": "c"}})
    assert reply.json()["meta_info"]["weight_version"] in ("default", "v9")
    assert (await http.get("/model_info")).json()["weight_version"] == "v9"
