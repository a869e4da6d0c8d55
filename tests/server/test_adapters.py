"""Adapters over HTTP: by the names that requests give, loaded and unloaded while the server runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file
from starlette.applications import Starlette

from sapwood.config import Config
from sapwood.config.adapters import AdapterOptions
from sapwood.config.flags import from_options
from sapwood.config.options import ServerConfig
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"prompt": "Hello", "max_tokens": 2}


def write(path: Path, *, rank: int = 4, value: float = 0.0, **fields: Any) -> Path:
    """An adapter of one module."""
    path.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "base_model_name_or_path": "some/base"}
    (path / "adapter_config.json").write_text(json.dumps(config | fields))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{name}.lora_{one}.weight": np.full(shape, value, np.float32)
        for one, shape in (("A", (rank, 8)), ("B", (8, rank)))
    }
    save_file(tensors, path / "adapter_model.safetensors")
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    modules = (f"sql={write(tmp_path / 'sql')}",)
    watched = tmp_path / "watched"
    watched.mkdir()
    options = AdapterOptions(lora_modules=modules, lora_dir=str(watched), max_lora_rank=8)
    return Config(adapters=options, server=ServerConfig(admin_api_key="boss"))


@pytest.fixture
async def http(http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers["x-api-key"] = "boss"
    return http


def lent(engine: FakeEngine) -> str | None:
    """The directory of the last request's adapter, by its name."""
    adapter = engine.lent[-1]
    return None if adapter is None else Path(adapter.path).name


@pytest.mark.parametrize(("model", "has"), [(MODEL, None), (None, None), ("sql", "sql"), (f"{MODEL}:sql", "sql")])
async def test_requests_name_one_as_their_model(
    http: httpx.AsyncClient, engine: FakeEngine, model: str | None, has: str | None
) -> None:
    reply = await http.post("/v1/completions", json=ASK | {"model": model})
    assert (reply.status_code, reply.json()["model"]) == (200, has or MODEL)
    assert lent(engine) == has


async def test_every_dialect_has_them(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 2},
        "/v1/messages": {"messages": messages, "max_tokens": 2},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
        "/api/chat": {"messages": messages, "stream": False, "options": {"num_predict": 2}},
    }
    for path, body in bodies.items():
        reply = await http.post(path, json=body | {"model": "sql"})
        assert (reply.status_code, reply.json()["model"], lent(engine)) == (200, "sql", "sql"), path
    async with http.stream("POST", "/v1/completions", json=ASK | {"model": "sql", "stream": True}) as stream:
        lines = [line async for line in stream.aiter_lines() if line.startswith("data: {")]
    assert json.loads(lines[0][6:])["model"] == "sql"


@pytest.mark.parametrize("name", ["other", f"{MODEL}:other", "sql:other"])
async def test_an_unknown_one_is_404(http: httpx.AsyncClient, name: str) -> None:
    reply = await http.post("/v1/completions", json=ASK | {"model": name})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'sql'" in error["message"]


async def test_generate_has_one_for_each_prompt(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    sampling = {"max_new_tokens": 1}
    body = {"text": ["a", "b"], "lora_path": ["sql", None], "sampling_params": sampling}
    assert (await http.post("/generate", json=body)).status_code == 200
    assert [one is not None for one in engine.lent[-2:]] == [True, False]
    reply = await http.post("/generate", json=body | {"lora_path": "other"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (404, "lora_path")


async def test_models_lists_them(http: httpx.AsyncClient, tmp_path: Path) -> None:
    base, adapter = (await http.get("/v1/models")).json()["data"]
    assert (base["id"], base["parent"]) == (MODEL, None)
    assert (adapter["id"], adapter["parent"], adapter["root"]) == ("sql", MODEL, str(tmp_path / "sql"))
    assert (await http.get("/v1/models/sql")).json() == adapter


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_loading_and_unloading(http: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path, prefix: str) -> None:
    body = {"lora_name": "poet", "lora_path": str(write(tmp_path / "poet"))}
    assert (await http.post(f"{prefix}/load_lora_adapter", json=body)).status_code == 200
    await http.post("/v1/completions", json=ASK | {"model": "poet"})
    assert lent(engine) == "poet" and engine.controls[-1] == "adapter"
    again = await http.post(f"{prefix}/load_lora_adapter", json=body)
    assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
    assert (await http.post(f"{prefix}/unload_lora_adapter", json={"lora_name": "poet"})).status_code == 200
    assert (await http.post("/v1/completions", json=ASK | {"model": "poet"})).status_code == 404
    gone = await http.post(f"{prefix}/unload_lora_adapter", json={"lora_name": "poet"})
    assert (gone.status_code, gone.json()["error"]["param"]) == (404, "lora_name")


async def test_one_that_is_changed_in_place_is_another(
    http: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    """What was computed with the old one is not found by requests of the new one."""
    body = {"lora_name": "sql", "lora_path": str(write(tmp_path / "sql", value=1.0)), "load_inplace": True}
    for _ in range(2):
        await http.post("/v1/completions", json=ASK | {"model": "sql"})
        assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 200
    old, new = engine.lent
    assert old is not None and new is not None and old.path == new.path and old.id != new.id


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "too large": ({"rank": 9}, "its rank is 9, and there is room for 8"),
    "no LoRA": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "another base": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    "biases": ({"bias": "all"}, "bias 'all'"),
}


@pytest.mark.parametrize("what", BAD)
async def test_what_cannot_be_used_is_said(http: httpx.AsyncClient, tmp_path: Path, what: str) -> None:
    fields, why = BAD[what]
    path = write(tmp_path / "bad", **fields)
    reply = await http.post("/v1/load_lora_adapter", json={"lora_name": "bad", "lora_path": str(path)})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "lora_path")
    assert why in error["message"]


async def test_what_the_engine_refuses_is_said(http: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path) -> None:
    engine.replies["adapter"] = {"loaded": False, "error": "the adapter cannot be used: it does not fit"}
    reply = await http.post(
        "/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": str(write(tmp_path / "new"))}
    )
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "lora_path")
    assert (await http.get("/v1/models/new")).status_code == 404


async def test_only_operators_load(http: httpx.AsyncClient) -> None:
    body = {"lora_name": "sql"}
    reply = await http.post("/v1/unload_lora_adapter", json=body, headers={"x-api-key": "none"})
    assert reply.status_code == 403


async def test_where_nobody_can_look_is_a_wrong_path(http: httpx.AsyncClient) -> None:
    for path in ("/" + "x" * 300, "/x\0y", ""):
        reply = await http.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": path})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "lora_path"), reply.text


async def test_a_directory_is_watched(
    app: Starlette, http: httpx.AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapters, folder = app.state.front.adapters, tmp_path / "watched"
    write(folder / "one")
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text("{}")
    write(folder / "large", rank=9)
    (folder / "a").symlink_to("x" * 300)  # at which nobody can look
    await adapters.look()
    assert [known.name for known in adapters.registry] == ["sql", "one"]
    before = adapters.registry.get("one").adapter.id
    write(folder / "one", value=2.0, lora_alpha=16)
    write(folder / "two")
    await adapters.look()
    assert adapters.registry.get("one").adapter.id != before
    assert (await http.get("/v1/models/two")).status_code == 200
    shutil.rmtree(folder / "one")
    await adapters.look()
    assert [known.name for known in adapters.registry] == ["sql", "two"]
    for _ in range(2):  # it goes, comes, and goes again: that is told of once each time
        shutil.rmtree(folder)
        caplog.clear()
        for _ in range(3):
            await adapters.look()
        assert [known.name for known in adapters.registry] == ["sql"]
        assert len([one for one in caplog.messages if "--lora-dir" in one]) == 1
        folder.mkdir()
        await adapters.look()


async def test_without_adapters(engine: FakeEngine, text: TextModel, tmp_path: Path) -> None:
    app = create_app(engine, text, Config(server=ServerConfig(admin_api_key="boss")), MODEL)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        body = {"lora_name": "a", "lora_path": str(write(tmp_path / "a"))}
        reply = await http.post("/v1/load_lora_adapter", json=body, headers={"x-api-key": "boss"})
    assert reply.status_code == 400 and "--enable-lora" in reply.json()["error"]["message"]
    await app.state.front.close()


def test_spellings_of_modules() -> None:
    from sapwood.config.adapters import named

    given = ("a=/x/y", "/some/b", '{"name": "c", "path": "/z", "base_model_name": "m"}')
    assert named(from_options({"lora_modules": given}).adapters) == [("a", "/x/y"), ("b", "/some/b"), ("c", "/z")]
