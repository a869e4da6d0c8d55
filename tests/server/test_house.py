"""Several models behind one front: who is there, who makes room, and what is answered meanwhile; engines are those of tests."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from sapwood.base.errors import ConfigError, ModelError
from sapwood.config import Config
from sapwood.config.flags import from_options
from sapwood.config.house import Resident, residents, seconds_of
from sapwood.server import create_app, house
from sapwood.server.auth import Guard
from sapwood.server.house import House
from sapwood.server.porch import Porch
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine
from tests.waiting import eventually, within

pytestmark = pytest.mark.anyio
ADMIN = {"authorization": "Bearer boss"}


class Street:
    """A house, and a client of it. `broken` models cannot be loaded."""

    def __init__(self, text: TextModel, found: list[Resident], **options: Any) -> None:
        self.engines: dict[str, FakeEngine] = {}
        self.begun: list[str] = []
        self.broken: set[str] = set()
        self.hold: asyncio.Event | None = None  # of loading
        self._text, self._found = text, found
        config = found[0].config
        guard = Guard(config.server)

        @contextlib.asynccontextmanager
        async def opened(resident: Resident) -> AsyncIterator[Starlette]:
            self.begun.append(resident.name)
            if self.hold is not None:
                await self.hold.wait()
            if resident.name in self.broken:
                raise ModelError("its weights are missing")
            engine = self.engines[resident.name] = FakeEngine(text)
            engine.replies |= {"sleep": {"asleep": ["kv_cache", "weights"]}, "wake_up": {"asleep": []}}
            others = [name for one in found if one.fallback == resident.name for name in one.names]
            yield create_app(engine, text, resident.config, (*resident.names, *others), guard=guard)

        self.house = House(found, opened, **options)
        self.app = Porch(self.house, config, guard)
        transport = httpx.ASGITransport(app=self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN)

    async def ask(self, model: str | None, **fields: Any) -> httpx.Response:
        body = {"prompt": "x", "max_tokens": 3} | ({} if model is None else {"model": model}) | fields
        return await within(self.http.post("/v1/completions", json=body))

    @property
    def states(self) -> dict[str, str]:
        return {one.name: one.state for one in self.house.members}


Make = Callable[..., Street]


@pytest.fixture
async def make(text: TextModel) -> AsyncIterator[Make]:
    made: list[Street] = []

    def street(*names: str, given: dict[str, Any] | None = None, **options: Any) -> Street:
        found = residents(names, {"admin_api_key": "boss"} | (given or {}))
        made.append(Street(text, found, **options))
        return made[-1]

    yield street
    for one in made:
        await one.app.close()


async def test_each_is_loaded_when_it_is_asked_for(make: Make) -> None:
    street = make("a", "b")
    assert street.states == {"a": "unloaded", "b": "unloaded"}
    assert (await street.ask("b")).json()["model"] == "b"
    assert street.states == {"a": "unloaded", "b": "ready"}
    client = AsyncOpenAI(api_key="boss", base_url="http://test/v1", http_client=street.http, max_retries=0)
    for name in ("a", "b", "a"):
        reply = await within(client.completions.create(model=name, prompt="x", max_tokens=2))
        assert reply.model == name
    assert {one.id for one in (await client.models.list()).data} == {"a", "b"}
    assert street.begun == ["b", "a"]
    chunks = [
        chunk async for chunk in await client.completions.create(model="a", prompt="x", max_tokens=3, stream=True)
    ]
    assert chunks[-1].choices[0].finish_reason == "length"
    missing = await street.ask("c")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert (await street.ask(None)).json()["model"] == "a"  # the first


async def test_a_compressed_body_is_read(make: Make) -> None:
    street = make("a", "b")
    body = gzip.compress(b'{"model": "b", "prompt": "x", "max_tokens": 3}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = await within(street.http.post("/v1/completions", content=body, headers=headers))
    assert reply.json()["model"] == "b"
    broken = await within(street.http.post("/v1/completions", content=body[:9], headers=headers))
    assert broken.status_code == 400


async def test_who_was_asked_for_least_lately_makes_room(make: Make) -> None:
    street = make("a", "b", "c", most=2)
    for name in ("a", "b", "a", "c"):
        await street.ask(name)
    assert street.states == {"a": "ready", "b": "asleep", "c": "ready"}
    assert street.engines["b"].controls == ["sleep"]
    await street.ask("b")
    assert street.states == {"a": "asleep", "b": "ready", "c": "ready"}
    assert street.engines["b"].controls == ["sleep", "wake_up"] and street.begun == ["a", "b", "c"]


@pytest.mark.parametrize("sleeps", [True, False])
async def test_who_comes_while_it_goes_waits_for_its_turn(make: Make, sleeps: bool) -> None:
    street = make("a", "b", most=1, sleeps=sleeps)
    await street.ask("a")
    front, gate, goes = street.house.members[0].front, asyncio.Event(), asyncio.Event()
    assert front is not None
    end, control = front.close, street.engines["a"].control

    async def closing() -> None:
        goes.set()
        await gate.wait()
        await end()

    async def controlled(what: str, about: dict[str, Any] | None = None) -> dict[str, Any]:
        if what == "sleep":
            goes.set()
            await gate.wait()
        return await control(what, about)

    front.close, street.engines["a"].control = closing, controlled  # type: ignore[method-assign]
    other = asyncio.create_task(street.ask("b"))
    await within(goes.wait())
    back = asyncio.create_task(street.ask("a"))
    await asyncio.sleep(0.1)  # for it to be waiting
    waited, state = not back.done(), street.states["a"]
    gate.set()
    assert waited and state == ("asleep" if sleeps else "unloaded")
    assert (await other).json()["model"] == "b" and (await back).json()["model"] == "a"


async def test_a_question_about_sleep_wakes_nobody(make: Make) -> None:
    street = make("a", "b", most=1)
    assert (await street.http.get("/is_sleeping?model=b")).json() == {"is_sleeping": True} and not street.begun
    for name in ("a", "b"):
        await street.ask(name)
    for engine in street.engines.values():
        engine.replies["status"] = {"asleep": []}
    told = {name: (await street.http.get(f"/is_sleeping?model={name}")).json()["is_sleeping"] for name in ("a", "b")}
    assert told == {"a": True, "b": False} and street.states == {"a": "asleep", "b": "ready"}
    street.engines["b"].replies["status"] = {"asleep": ["weights"]}
    assert (await street.http.get("/is_sleeping?model=b")).json() == {"is_sleeping": True}


async def test_a_sleeper_whose_engine_dies_is_no_sleeper_any_more(make: Make) -> None:
    street = make("a", "b", most=1)
    for name in ("a", "b"):
        await street.ask(name)
    street.engines["b"].changed()  # of one that is awake that is its keeper's business
    life = street.house.members[0].life
    assert life is not None
    street.engines["a"].changed()
    await within(asyncio.wait([life]))
    assert street.states == {"a": "unloaded", "b": "ready"}
    assert (await street.ask("a")).status_code == 200 and street.begun == ["a", "b", "a"]


async def test_the_document_is_that_of_the_house(make: Make) -> None:
    street = make("a", "b")
    told = (await street.http.get("/openapi.json")).json()
    paths = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert set(street.app._own) <= paths and {("POST", "/v1/chat/completions"), ("POST", "/api/show")} <= paths
    unloads = told["paths"]["/models/unload"]["post"]
    assert unloads["x-admin"] and unloads["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/Named"
    )
    cards = told["paths"]["/v1/models"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert cards.endswith("/Cards") and "?model=" in told["info"]["description"]
    names = [one["operationId"] for methods in told["paths"].values() for one in methods.values()]
    assert len(names) == len(set(names)) and all(
        one["summary"] for methods in told["paths"].values() for one in methods.values()
    )
    assert "/models/unload" in (await street.http.get("/docs")).text


async def test_or_it_ends(make: Make) -> None:
    street = make("a", "b", most=1, sleeps=False)
    for name in ("a", "b", "a"):
        await street.ask(name)
    assert street.states == {"a": "ready", "b": "unloaded"} and street.begun == ["a", "b", "a"]


async def test_all_who_wait_hear_that_it_cannot_be_loaded(make: Make) -> None:
    street = make("a")
    street.broken, street.hold = {"a"}, asyncio.Event()
    asked = [asyncio.create_task(street.ask("a")) for _ in range(3)]
    await asyncio.to_thread(eventually, lambda: street.house.members[0].uses == 3)
    street.hold.set()
    assert [(await one).status_code for one in asked] == [503] * 3 and street.begun == ["a"]
    assert (await street.ask("a")).status_code == 503 and street.begun == ["a", "a"]


async def test_what_runs_in_the_background_is_waited_for(make: Make) -> None:
    street = make("a", "b", most=1, given={"keep_alive": "0"})
    await street.http.post("/models/load", json={"model": "a"})
    street.house.members[0].keep_alive = None
    engine = street.engines["a"]
    engine.hold = asyncio.Event()
    body = {"model": "a", "input": "x", "background": True, "max_output_tokens": 3}
    assert (await within(street.http.post("/v1/responses", json=body))).status_code == 200
    await engine.until_running(1)
    street.house.members[0].keep_alive = 0.0
    street.house.expire(street.house.members[0])
    other = asyncio.create_task(street.ask("b"))
    await asyncio.sleep(0.1)  # for it to be waiting, and for the time to be over
    assert street.states == {"a": "ready", "b": "unloaded"}
    engine.hold.set()
    assert (await other).json()["model"] == "b"


async def test_a_batch_has_its_model_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "PATIENCE_SECONDS", 0.0)
    street = make("a", "b", most=1)
    await street.ask("a")
    front = street.house.members[0].front
    assert front is not None
    front.chores.add("batch")
    assert (await street.ask("b")).json()["model"] == "b"
    await asyncio.to_thread(eventually, lambda: street.states["a"] == "ready")
    assert street.states["b"] == "asleep" and street.engines["a"].controls == ["sleep", "wake_up"]
    front.chores.clear()


async def test_pinned_ones_stay(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.a]\nmodel = "a"\npinned = true\n[models.b]\nmodel = "b"\n[models.c]\nmodel = "c"\n')
    street = make(given={"models": str(file)}, most=2)
    await street.house.begin()
    assert street.states["a"] == "ready"
    for name in ("b", "c", "b"):
        await street.ask(name)
    assert street.states == {"a": "ready", "b": "ready", "c": "asleep"}
    reply = await street.http.post("/models/unload", json={"model": "a"})
    assert reply.status_code == 409


async def test_who_has_something_to_do_is_waited_for(make: Make) -> None:
    street = make("a", "b", most=1)
    await street.ask("a")
    street.engines["a"].hold = asyncio.Event()
    busy = asyncio.create_task(street.ask("a"))
    await street.engines["a"].until_running(1)
    other = asyncio.create_task(street.ask("b"))
    await asyncio.sleep(0.1)  # for it to be waiting, which changes nothing
    assert street.states["a"] == "ready"
    street.engines["a"].hold.set()
    assert (await busy).status_code == 200 and (await other).json()["model"] == "b"
    assert street.states == {"a": "asleep", "b": "ready"}


async def test_who_is_always_busy_yields(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "PATIENCE_SECONDS", 0.0)
    street = make("a", "b", most=1)
    await street.ask("a")
    over = False

    async def crowd() -> int:
        count = 0
        while not over:
            assert (await street.ask("a")).status_code == 200
            count += 1
        return count

    crowds = [asyncio.create_task(crowd()) for _ in range(4)]
    assert (await street.ask("b")).json()["model"] == "b"
    assert (await street.ask("b")).json()["model"] == "b"
    over = True
    assert min(await within(asyncio.gather(*crowds))) > 0


async def test_what_takes_too_long_is_told_with_an_estimate(make: Make) -> None:
    street = make("a", wait_seconds=5.0)
    street.hold = asyncio.Event()
    reply = await street.ask("a")
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) > 5
    assert street.states["a"] == "loading"  # it comes all the same
    street.hold.set()
    assert street.house.members[0].coming is not None
    await within(asyncio.wait([street.house.members[0].coming]))
    assert (await street.ask("a")).status_code == 200


async def test_another_answers_for_one_that_cannot_be_loaded(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.a]\nmodel = "a"\nfallback = "b"\n[models.b]\nmodel = "b"\naliases = ["gpt-4o", "big"]\n')
    street = make(given={"models": str(file)})
    street.broken = {"a"}
    assert (await street.ask("a")).json()["model"] == "b"
    street.broken = {"a", "b"}
    await street.house.unload(street.house.find("b"))
    for name in ("a", "gpt-4o"):
        reply = await street.ask(name)
        assert reply.status_code == 503 and "its weights are missing" in reply.json()["error"]["message"]
    street.broken = set()
    assert (await street.ask("gpt-4o")).json()["model"] == "b"
    cards = {card["id"]: card for card in (await street.http.get("/v1/models")).json()["data"]}
    assert cards["big"]["aliases"] == ["b", "gpt-4o"] and cards["big"]["state"] == "ready"
    assert cards["a"]["state"] == "unloaded" and cards["a"]["max_model_len"] is None
    assert (await street.http.get("/v1/models/gpt-4o")).json()["root"] == "b"


async def test_keep_alive_and_what_ollama_asks(make: Make) -> None:
    street = make("a", "b")
    body = {"model": "a:latest", "prompt": "x", "stream": False, "keep_alive": "10m"}
    assert (await street.http.post("/api/generate", json=body)).status_code == 200
    (shown,) = (await street.http.get("/api/ps")).json()["models"]
    assert shown["name"] == "a:latest" and shown["expires_at"] < "9999"
    assert [one["name"] for one in (await street.http.get("/api/tags")).json()["models"]] == ["a:latest", "b:latest"]
    assert (await street.http.post("/api/generate", json=body | {"keep_alive": 0})).status_code == 200
    member = street.house.members[0]
    assert member.life is not None
    await within(asyncio.wait([member.life]))
    assert street.states["a"] == "unloaded" and (await street.http.get("/api/ps")).json() == {"models": []}
    wrong = await street.http.post("/api/generate", json=body | {"keep_alive": "soon"})
    assert wrong.status_code == 400 and "keep_alive" in wrong.json()["error"]


async def test_nothing_is_loaded_for_who_may_not_ask(make: Make) -> None:
    street = make("a", given={"api_key": "mine"})
    reply = await street.http.post("/v1/completions", json={"model": "a"}, headers={"authorization": "Bearer no"})
    assert reply.status_code == 401 and street.begun == []
    for path in ("/models/load", "/models/unload"):
        refused = await street.http.post(path, json={"model": "a"}, headers={"authorization": "Bearer mine"})
        assert refused.status_code == 403
    assert (await street.http.post("/models/load", json={})).status_code == 400
    assert (await street.http.post("/models/load", json={"model": "a"})).json() == {"model": "a", "state": "ready"}


async def test_metrics_of_all(make: Make) -> None:
    street = make("a", "b")
    for name in ("a", "b"):
        await street.ask(name)
    page = (await street.http.get("/metrics")).text
    assert 'sapwood_engine_up{model="a"} 1.0' in page and 'sapwood_engine_up{model="b"} 1.0' in page
    assert page.count("# TYPE sapwood_engine_up gauge") == 1
    assert 'sapwood_house_state{model="b",state="ready"} 1.0' in page and "sapwood_house_loads_total 2.0" in page
    assert (await street.http.get("/health")).json() == {"status": "ok", "models": {"a": "ready", "b": "ready"}}


async def test_it_ends_when_requests_have(make: Make) -> None:
    street = make("a")
    await street.ask("a")
    street.engines["a"].hold = asyncio.Event()
    busy = asyncio.create_task(street.ask("a"))
    await street.engines["a"].until_running(1)
    draining = asyncio.create_task(street.app.drain())
    await asyncio.sleep(0)
    late = await street.ask("a")
    assert late.status_code == 503 and not draining.done()
    street.engines["a"].hold.set()
    assert (await busy).status_code == 200
    await within(draining)


@pytest.mark.parametrize(
    ("text_", "why"),
    [
        ("x = 1", "a table"),
        ("[models.a]\n", "has no model"),
        ('[models.a]\nmodel = "a"\nport = 3\n', "an option of the server"),
        ('[models.a]\nmodel = "a"\nmax_model_lem = 3\n', "Did you mean"),
        ('[models.a]\nmodel = "a"\n[models.b]\nmodel = "b"\naliases = ["a"]\n', "the name of two models"),
        ('[models.a]\nmodel = "a"\nfallback = "z"\n', "no other of the models"),
        ('[models.a]\nmodel = "a"\nkeep_alive = "soon"\n', "takes a time"),
        ("[models", "cannot be read"),
    ],
)
def test_files_that_cannot_be(text_: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text_)
    with pytest.raises(ConfigError, match=why):
        residents((), {"models": str(file)})


def test_options_of_each(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.a]\nmodel = "x"\nmax_model_len = "4k"\n[models.b]\nmodel = "y"\n')
    a, b = residents((), {"models": str(file), "max_model_len": 512, "keep_alive": "5m"})
    assert (a.config.model.max_model_len, b.config.model.max_model_len) == (4000, 512)
    assert a.keep_alive == 300 and a.config.model.served_model_name == ("a",)
    with pytest.raises(ConfigError, match="must be at least 1"):
        residents(("a",), {"max_loaded": 0})
    assert from_options({}) == Config()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("10m", 600), (300, 300), ("1h30m", 5400), (-1, None), ("-1m", None), ("500ms", 0.5), (0, 0), ("9" * 400, None)],
)
def test_times(said: str | int, seconds: float | None) -> None:
    assert seconds_of(said, "x") == seconds
