from __future__ import annotations

import asyncio

import httpx
import pytest

import sapwood
from sapwood.base.wire import Stats
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server.sglang import state
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
def config() -> Config:
    return Config(server=ServerConfig(cors_origins="https://secret.example"))


async def test_a_token_is_made_to_tell_health(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await http.get("/health_generate")).status_code == 200
    assert engine.asked[0].params.max_tokens == 1
    engine.hold = asyncio.Event()
    engine.delay = 1e9
    monkeypatch.setattr(state, "_TOKEN_SECONDS", 0.01)
    reply = await http.get("/health_generate")
    assert reply.status_code == 503 and "No token" in reply.json()["error"]["message"]
    await engine.until_running(0)
    engine.dead = "killed by signal 9"
    for path in ("/health_generate", "/ping"):
        reply = await http.get(path)
        assert reply.status_code == 503 and "signal 9" in reply.json()["error"]["message"]


async def test_ping(http: httpx.AsyncClient) -> None:
    for method in ("GET", "POST"):
        assert (await http.request(method, "/ping")).status_code == 200


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
async def test_model_info(http: httpx.AsyncClient, config: Config, path: str) -> None:
    told = (await http.get(path)).json()
    assert told["model_path"] == told["tokenizer_path"] == config.model.model
    assert told["is_generation"] and told["weight_version"] == "default" and told["max_model_len"] == 512


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_server_info_has_no_secrets(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.get(path)
    told = reply.json()
    assert (told["version"], told["served_model_name"]) == (sapwood.__version__, MODEL)
    assert told["facts"]["page_size"] and "policy" in told["config"]["scheduler"]
    assert told["internal_states"][0]["running"] == 0
    assert "secret" not in reply.text


async def test_loads(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    size = engine.facts.page_size
    engine.stats = Stats(3, 2, {}, {}, [[32, 20, 4], [16, 0, 4]], paused=True)
    told = (await http.get("/v1/loads")).json()
    rank = told["loads"][0]
    assert (rank["num_running_reqs"], rank["num_waiting_reqs"], rank["paused"]) == (3, 2, True)
    assert (rank["num_used_tokens"], rank["max_total_num_tokens"]) == (12 * size, 16 * size)
    assert rank["token_usage"] == told["aggregate"]["avg_token_usage"] == 0.75
    assert told["aggregate"]["total_reqs"] == 5
    (old,) = (await http.get("/get_load")).json()
    assert (old["num_reqs"], old["num_waiting_reqs"], old["num_tokens"]) == (5, 2, 12 * size)


async def test_loads_before_the_first_report(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.stats = None
    (rank,) = (await http.get("/v1/loads")).json()["loads"]
    assert (rank["num_used_tokens"], rank["token_usage"]) == (0, 0.0)


async def test_tokenizer_info(http: httpx.AsyncClient, text: TextModel) -> None:
    told = (await http.get("/tokenizer_info")).json()
    assert told["special_tokens"]["<|im_end|>"] == text.eos_ids[0]
    assert (told["eos_token"], told["bos_token"], told["model_max_length"]) == ("<|im_end|>", "<|endoftext|>", 512)
    assert "im_start" in told["chat_template"]
