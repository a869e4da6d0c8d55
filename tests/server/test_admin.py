from __future__ import annotations

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

import sapwood
from sapwood.base.wire import Stats
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

STATS = Stats(3, 2, {"preemptions": 5, "evicted_pages": 7}, {"host_seconds": 1.5, "wait_seconds": 2.5}, [[32, 20, 4]])


async def test_models(client: AsyncOpenAI) -> None:
    (model,) = (await client.models.list()).data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "sapwood")
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 512
    assert (await client.models.retrieve(MODEL)).id == MODEL


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health(http: httpx.AsyncClient, engine: FakeEngine, app: Starlette, path: str) -> None:
    engine.stats = STATS
    reply = await http.get(path)
    well = {"status": "ok", "model": MODEL, "running": 3, "waiting": 2, "restarts": 0}
    assert (reply.status_code, reply.json()) == (200, well)
    engine.ails = "it does not answer"
    reply = await http.get(path)
    assert (reply.status_code, reply.json()) == (503, well | {"status": "hung", "reason": engine.ails})
    engine.dead, engine.retry_after, engine.restarts = "killed by signal 9", 2.5, 1
    reply = await http.get(path)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "3")
    assert reply.json() == well | {"status": "restarting", "reason": engine.dead, "restarts": 1}
    engine.retry_after = None
    reply = await http.get(path)
    assert (reply.status_code, reply.json()["status"]) == (503, "dead") and "retry-after" not in reply.headers
    engine.dead = engine.ails = None
    app.state.front.drain.begun = True
    reply = await http.get(path)
    assert (reply.status_code, reply.json()["status"]) == (200 if path == "/health" else 503, "draining")


async def test_version(http: httpx.AsyncClient) -> None:
    assert (await http.get("/version")).json() == {"version": sapwood.__version__}


@pytest.mark.parametrize("config", [Config(server=ServerConfig(admin_api_key="boss"))])
async def test_the_root_tells_what_is_here(http: httpx.AsyncClient) -> None:
    http.headers["x-api-key"] = "boss"
    told = (await http.get("/")).json()
    assert (told["name"], told["version"], told["model"]) == ("sapwood", sapwood.__version__, MODEL)
    assert told["routes"]["/v1/chat/completions"] == ["GET", "POST"]
    for path, methods in told["routes"].items():
        if "GET" in methods and "{" not in path:
            assert (await http.get(path)).status_code == 200, path


async def test_tokenize_and_back(http: httpx.AsyncClient, text: TextModel) -> None:
    reply = (await http.post("/tokenize", json={"prompt": "the cat ça", "return_token_strs": True})).json()
    tokens = text.encode("the cat ça")
    assert reply == {
        "count": len(tokens),
        "max_model_len": 512,
        "tokens": tokens,
        "token_strs": [text.token_text(token) for token in tokens],
    }
    reply = (await http.post("/detokenize", json={"tokens": tokens})).json()
    assert reply == {"prompt": "the cat ça"}
    assert (await http.post("/tokenize", json={"prompt": ""})).json()["count"] == 0


async def test_tokenize_messages(http: httpx.AsyncClient, text: TextModel) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": False}
    reply = (await http.post("/tokenize", json=body)).json()
    assert text.decode(reply["tokens"], skip_special=False) == "<|im_start|>user\nhi<|im_end|>\n"


async def test_metrics(http: httpx.AsyncClient, engine: FakeEngine, app: Starlette, text: TextModel) -> None:
    engine.stats, engine.cached = STATS, 2
    await http.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4})
    await http.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 99, "stop": "sat"})
    await http.post("/v1/completions", json={"prompt": []})
    await http.get("/some/random/path")
    await http.get("/v1/models/tiny")
    reply = await http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#"))
    assert values['sapwood_requests_total{endpoint="/v1/completions",status="200"}'] == "2.0"
    assert values['sapwood_requests_total{endpoint="/v1/completions",status="400"}'] == "1.0"
    assert values['sapwood_requests_total{endpoint="other",status="404"}'] == "1.0"
    assert values['sapwood_requests_total{endpoint="/v1/models/{name}",status="200"}'] == "1.0"
    assert values['sapwood_finished_total{reason="length"}'] == "1.0"
    assert values['sapwood_finished_total{reason="stop"}'] == "1.0"
    assert values["sapwood_prompt_tokens_total"] == "6.0"
    assert values['sapwood_cached_prompt_tokens_total{source="device"}'] == "4.0"
    assert float(values["sapwood_output_tokens_total"]) > 4
    assert values["sapwood_time_to_first_token_seconds_count"] == "2.0"
    assert float(values["sapwood_inter_token_seconds_count"]) == float(values["sapwood_output_tokens_total"]) - 2
    assert values['sapwood_request_seconds_count{endpoint="/v1/completions"}'] == "3.0"
    assert (values["sapwood_running"], values["sapwood_waiting"]) == ("3.0", "2.0")
    assert values['sapwood_pages{group="0",state="free"}'] == "20.0"
    assert values["sapwood_engine_preemptions_total"] == "5.0"
    assert values["sapwood_engine_wait_seconds_total"] == "2.5"
