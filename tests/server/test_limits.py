"""How much a key may take: buckets by a clock of our own, and what a client is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from sapwood.base.errors import LimitReached
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server.keys import Tenant
from sapwood.server.limits import Account, Accounts, Bucket
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
LIMITS = """
[[keys]]
name = "few"
key = "few"
requests_per_minute = 2

[[keys]]
name = "short"
key = "short"
tokens_per_minute = 40

[[keys]]
name = "single"
key = "single"
parallel_requests = 1
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "keys.toml"
    file.write_text(LIMITS)
    return Config(server=ServerConfig(api_keys_file=str(file)))


def test_a_bucket_fills_steadily() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(60, 0.0)
    assert (bucket.level(0.0), bucket.wait(1, 0.0), bucket.wait(1000, 0.0)) == (0, 1, 60)
    assert (bucket.level(10.0), bucket.wait(10, 10.0), bucket.level(1000.0)) == (10, 0, 60)
    bucket.take(90, 1000.0)
    assert (bucket.level(1000.0), bucket.wait(1, 1000.0)) == (-30, 31)
    bucket.take(-500, 1000.0)
    assert bucket.level(1000.0) == 60


def test_another_limit_forgives_nothing() -> None:
    clock = Clock()
    accounts = Accounts(clock)
    account = accounts.of(Tenant(name="a", tokens_per_minute=100))
    with account.generating(80) as used:
        used.tokens = 90
    account = accounts.of(Tenant(name="a", tokens_per_minute=200))
    assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"110"
    account = accounts.of(Tenant(name="a"))
    assert account.headers() == []


def test_tokens_are_reserved_and_settled() -> None:
    clock = Clock()
    account = Account(Tenant(name="a", tokens_per_minute=600), clock)
    with account.generating(500) as used:
        used.tokens = 50
        assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"100"
        refusal = pytest.raises(LimitReached, match="600 tokens a minute; 100 are left and 200 are needed")
        with refusal as refused, account.generating(200):
            raise AssertionError
        assert refused.value.retry_after == 10
    assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"550"
    clock.now += 60
    with account.generating(10**9) as used:  # one that could take more than all may, when all is there
        used.tokens = 2
        assert account.running == 1


def test_a_reservation_is_settled_whatever_happens() -> None:
    account = Account(Tenant(name="a", tokens_per_minute=600, parallel_requests=1), Clock())
    with pytest.raises(RuntimeError), account.generating(500):
        raise RuntimeError
    assert account.running == 0
    assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"600"


async def test_requests_a_minute(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    http.headers["x-api-key"] = "few"
    replies = [await http.post(path, json={"prompt": "x", "max_tokens": 1}) for path in (TEXT, "/nowhere", TEXT)]
    assert [reply.status_code for reply in replies] == [200, 404, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0", "0"]
    assert replies[-1].headers["x-ratelimit-limit-requests"] == "2"
    assert "x-ratelimit-limit-tokens" not in replies[-1].headers
    error = replies[-1].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 0 < int(replies[-1].headers["retry-after"]) <= 30
    assert (await http.get("/v1/models")).status_code == 200  # looking costs nothing
    http.headers["x-api-key"] = "single"
    assert (await http.post(TEXT, json={"prompt": "x", "max_tokens": 1})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_a_minute(http: httpx.AsyncClient, stream: bool) -> None:
    http.headers["x-api-key"] = "short"
    body = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4, "stream": stream}
    first = await http.post(CHAT, json=body)
    assert first.status_code == 200
    left = int(first.headers["x-ratelimit-remaining-tokens"])
    assert 0 < left < 36
    statuses = [(await http.post(CHAT, json=body)).status_code for _ in range(3)]
    assert statuses[-1] == 429
    await http.post(TEXT, json={"prompt": "x", "max_tokens": 1})


async def test_requests_at_once(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    http.headers["x-api-key"] = "single"
    engine.hold = asyncio.Event()
    body = {"prompt": "x", "max_tokens": 8}
    first = asyncio.create_task(http.post(TEXT, json=body))
    await engine.until_running(1)
    refused = await http.post(TEXT, json=body)
    assert refused.status_code == 429 and "it may have 1 at once" in refused.json()["error"]["message"]
    engine.hold.set()
    assert (await first).status_code == 200
    assert (await http.post(TEXT, json=body)).status_code == 200


async def test_one_who_hangs_up_pays_for_what_came(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    http.headers["x-api-key"] = "single"
    engine.hold = asyncio.Event()
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x", "max_tokens": 8}))
    await engine.until_running(1)
    asking.cancel()
    await engine.until_running(0)
    engine.hold = None
    assert (await http.post(TEXT, json={"prompt": "x", "max_tokens": 8})).status_code == 200
