"""Keys: where they come from, who may pass with them, and what changes while the server runs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers

from sapwood.base.errors import ConfigError
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import create_app, keys
from sapwood.server.app import ROOMS
from sapwood.server.auth import Guard
from sapwood.server.keys import Keyring, Tenant, digest_of
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

TEXT = "/v1/completions"
SHORT = {"prompt": "x", "max_tokens": 1}
FILE = f"""
[[keys]]
name = "alice"
key = "alice's"
tokens_per_minute = 1000

[[keys]]
name = "bob"
sha256 = "{digest_of("bob's").upper()}"
weight = 2
group = "team"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def config(file: Path) -> Config:
    return Config(server=ServerConfig(api_keys_file=str(file), api_key="one, two", log_requests=True))


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOOK_SECONDS", -1.0)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def find(ring: Keyring, key: str) -> str | None:
    found = ring.table.find(key.encode())
    return None if found is None else found.name


def test_keys_come_from_options_and_the_file(config: Config) -> None:
    ring = Keyring(config.server)
    wanted = {"one": "key1", "two": "key2", "alice's": "alice", "bob's": "bob", "one, two": None, "": None}
    assert {key: find(ring, key) for key in wanted} == wanted
    assert (ring.table.by_name["bob"].weight, ring.table.by_name["alice"].tokens_per_minute) == (2, 1000)


def test_json_says_the_same(tmp_path: Path, file: Path) -> None:
    told = {"keys": [{"name": "alice", "key": "alice's"}]}
    (tmp_path / "keys.json").write_text(json.dumps(told))
    assert find(Keyring(ServerConfig(api_keys_file=str(tmp_path / "keys.json"))), "alice's") == "alice"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "missing required field `keys`"),
        ("keys = []", "it has no keys"),
        ("[[keys]]\nname = 'a'", "a: give either key or sha256"),
        ("[[keys]]\nname = 'a'\nkey = 'k'\nsha256 = 'x'", "a: give either key or sha256"),
        ("[[keys]]\nname = 'a'\nsha256 = 'x'", "64 hexadecimal digits"),
        ("[[keys]]\nname = 'a b'\nkey = 'k'", r"keys\[0\]\.name"),
        ("[[keys]]\nname = 'a'\nkey = 'k'\nrpm = 3", "unknown field `rpm`"),
        ("[[keys]]\nname = 'a'\nkey = 'k'\nweight = 0", "weight"),
        ("[[keys]]\nname = 'a'\nkey = 'k'\nrequests_per_minute = 0", "requests_per_minute"),
        ("[[keys]]\nname = 'a'\nkey = 'k'\n[[keys]]\nname = 'a'\nkey = 'l'", "the same name"),
        ("[[keys]]\nname = 'a'\nkey = 'k'\n[[keys]]\nname = 'b'\nkey = 'k'", "the same key"),
        ("[[keys]]\nname = 'admin'\nkey = 'k'", "operator's"),
        ("keys = [", "Invalid|Unexpected|Cannot|Expected"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_what_is(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as error:
        Keyring(ServerConfig(api_keys_file=str(file)))
    assert str(file) in str(error.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for name, why in (("keys.toml", "No such file"), ("", "directory"), ("keys.txt", ".toml or .json")):
        path = tmp_path / name
        if name.endswith(".txt"):
            path.write_text("keys")
        with pytest.raises(ConfigError, match=why):
            Keyring(ServerConfig(api_keys_file=str(path)))


def test_the_file_is_read_again_when_it_changes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = Keyring(ServerConfig(api_keys_file=str(file)))
    file.write_text("[[keys]]\nname = 'carol'\nkey = 'new'")
    assert (find(ring, "new"), find(ring, "alice's")) == ("carol", None)
    with caplog.at_level(logging.ERROR):
        file.write_text("[[keys]]\nname = 'carol'")
        assert find(ring, "new") == "carol"
        assert find(ring, "new") == "carol"
    (told,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "give either key or sha256" in told.getMessage()
    caplog.clear()
    os.remove(file)
    assert find(ring, "new") == "carol" and "No such file" in caplog.text
    file.write_text(FILE)
    assert find(ring, "alice's") == "alice"


def test_every_key_is_compared_whoever_s_it_is(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(given: str, digest: str) -> bool:
        compared.append(digest)
        return given == digest

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    ring = Keyring(config.server)
    for key in ("one", "bob's", "wrong", ""):
        compared.clear()
        find(ring, key)
        assert compared == [tenant.digest for tenant in ring.table.tenants]


async def test_the_name_stands_in_the_log_and_the_metrics(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sapwood.observe.observer"):
        assert (await http.post(TEXT, json=SHORT, headers=bearer("alice's"))).status_code == 200
        assert (await http.post(TEXT, json=SHORT, headers={"x-api-key": "bob's"})).status_code == 200
        assert (await http.post(TEXT, json=SHORT, headers=bearer("nobody's"))).status_code == 401
    assert [getattr(record, "fields", {}).get("key") for record in caplog.records][:2] == ["alice", "bob"]
    assert "'s" not in caplog.text
    told = (await http.get("/metrics", headers=bearer("one"))).text
    assert 'sapwood_key_requests_total{key="alice",status="200"} 1.0' in told
    assert 'sapwood_key_tokens_total{key="bob",kind="output"} 1.0' in told


async def test_a_key_that_is_not_ascii(engine: FakeEngine, text: TextModel) -> None:
    guard = Guard(ServerConfig(api_key="schlüssel"))
    headers = Headers(raw=[(b"authorization", "Bearer schlüssel".encode())])
    assert guard.admit(headers, "/x", trusted=False).tenant.name == "key1"


# -- operators --------------------------------------------------------------------------------------------------------


def admin_paths(app: Starlette) -> list[tuple[str, str]]:
    """What routes of rooms for operators there are."""
    front = app.state.front
    routes = [route for room in ROOMS if room.admin for route in room.routes(front)]
    return [(sorted(route.methods or {"GET"})[0], route.path.replace("{", "").replace("}", "")) for route in routes]


async def statuses(app: Starlette, headers: dict[str, str]) -> set[tuple[int, str]]:
    """Status and code of what all routes for operators say."""
    found = set()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t", headers=headers) as http:
        for method, path in admin_paths(app):
            reply = await http.request(method, path)
            found.add((reply.status_code, reply.json().get("error", {}).get("code", "") if reply.is_error else ""))
    return found


async def test_routes_for_operators_are_off(engine: FakeEngine, text: TextModel) -> None:
    app = create_app(engine, text, Config(), MODEL)
    assert await statuses(app, {}) == {(403, "admin_only")}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as http:
        message = (await http.post("/flush_cache")).json()["error"]
    assert "--admin-api-key" in message["message"] and message["type"] == "permission_error"
    assert engine.controls == []


async def test_routes_for_operators_want_the_admin_key(engine: FakeEngine, text: TextModel, config: Config) -> None:
    server = dataclasses.replace(config.server, admin_api_key="boss")
    app = create_app(engine, text, Config(server=server), MODEL)
    assert await statuses(app, bearer("alice's")) == {(403, "admin_only")}
    assert await statuses(app, bearer("wrong")) == {(401, "invalid_api_key")}
    assert all(status not in (401, 403) for status, _ in await statuses(app, bearer("boss")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as http:
        assert (await http.post(TEXT, json=SHORT, headers={"x-api-key": "boss"})).status_code == 200


async def test_without_other_keys_the_admin_key_is_for_operators_alone(engine: FakeEngine, text: TextModel) -> None:
    app = create_app(engine, text, Config(server=ServerConfig(admin_api_key="boss")), MODEL)
    assert await statuses(app, {}) == await statuses(app, bearer("none")) == {(403, "admin_only")}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as http:
        assert (await http.post(TEXT, json=SHORT, headers=bearer("none"))).status_code == 200


@pytest.mark.parametrize(
    ("options", "anybody", "client", "operator"),
    [
        ({"api_key": "one"}, 200, 200, 200),
        ({"api_key": "one", "metrics_access": "key"}, 401, 200, 401),
        ({"metrics_access": "admin"}, 403, 403, 403),
        ({"api_key": "one", "metrics_access": "admin", "admin_api_key": "boss"}, 401, 403, 200),
    ],
)
async def test_who_may_read_metrics(
    engine: FakeEngine, text: TextModel, options: dict[str, Any], anybody: int, client: int, operator: int
) -> None:
    app = create_app(engine, text, Config(server=ServerConfig(**options)), MODEL)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as http:
        assert (await http.get("/metrics")).status_code == anybody
        assert (await http.get("/metrics", headers=bearer("one"))).status_code == client
        assert (await http.get("/metrics", headers=bearer("boss"))).status_code == operator


async def test_with_a_file_of_keys_metrics_need_one(http: httpx.AsyncClient) -> None:
    assert (await http.get("/metrics")).status_code == 401
    assert (await http.get("/health")).status_code == 200


async def test_no_header_opens_a_route_for_operators(engine: FakeEngine, text: TextModel) -> None:
    app = create_app(engine, text, Config(), MODEL)
    for header in filter(None, (room.known_by for room in ROOMS)):
        assert {status for status, _ in await statuses(app, {header: "1"})} == {403}


# -- prefixes ---------------------------------------------------------------------------------------------------------


async def test_keys_share_no_prefixes(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for key in ("one", "two", "bob's", "one"):
        await http.post(TEXT, json=SHORT, headers=bearer(key))
        await http.post(TEXT, json=SHORT | {"cache_salt": "key two\0"}, headers=bearer(key))
    salts = [asked.salt for asked in engine.asked]
    assert len(set(salts)) == 6 and salts[:2] == salts[-2:]


def test_a_group_shares_prefixes_and_all_do_if_asked() -> None:
    def salts(*tenants: Tenant) -> set[str]:
        return {tenant.salted(salt) for tenant in tenants for salt in ("", "x")}

    assert len(salts(Tenant(name="a", group="g"), Tenant(name="b", group="g"))) == 2
    assert len(salts(Tenant(name="g"), Tenant(name="b", group="g"))) == 4
    assert salts(Tenant(name="a", shares=True), Tenant(name="b", group="g", shares=True)) == {"", "x"}


@pytest.mark.parametrize(
    ("own", "asked", "got"), [(None, 7, 7), (3, 0, 3), (3, 7, 3), (3, 1, 1), (-2, 0, -2), (-2, 5, -2)]
)
def test_a_key_s_priority_is_the_most_that_its_requests_may_ask_for(own: int | None, asked: int, got: int) -> None:
    assert Tenant(name="a", priority=own).ranked(asked) == got
