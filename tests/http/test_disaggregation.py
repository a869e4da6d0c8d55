"""Real servers, one that reads prompts and one that answers them, behind a router: answers are those of one server, and stay so when the
first is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import Server
from tests.http.test_fleet import CHAT, routed, run

pytestmark = pytest.mark.slow

Sides = tuple[Server, Server, Server]


@pytest.fixture(scope="module")
def sides(tiny_model: Path) -> Iterator[Sides]:
    """One that reads, one that answers, and one that does both alone."""
    base = ["--kv-cache-memory", "64M", "--served-model-name", "tiny", "--transfer-memory", "64M"]
    made = tuple(Server(tiny_model, *base, *role) for role in (["--role", "prefill"], ["--role", "decode"], []))
    yield made
    for server in made:
        server.kill()


def chat(number: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"{number}: what is a sapwood? " * 60}],
        "max_tokens": 12,
        "ignore_eos": True,
        "temperature": 0.8,
        "seed": number,
        "logprobs": True,
        **more,
    }


def said(answer: dict[str, Any]) -> tuple[Any, ...]:
    (choice,) = answer["choices"]
    return choice["message"]["content"], choice["logprobs"], choice["finish_reason"]


def cached(answer: dict[str, Any]) -> tuple[int, int]:
    usage = answer["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_behind_a_router(sides: Sides) -> None:
    ahead, behind, alone = sides
    servers = [{"url": ahead.url, "name": "ahead", "role": "prefill"}, {"url": behind.url, "name": "behind"}]
    formats = {"response_format": {"type": "json_object"}, "ignore_eos": False}

    async def case() -> None:
        async with routed("prefill_decode", servers) as (client, _):
            for number, more in enumerate(({}, {"temperature": 0}, formats)):
                async with client.post(CHAT, json=chat(number, **more)) as answer:
                    told = await answer.json()
                    assert answer.headers["x-sapwood-route"].startswith("prefill_decode; handed"), told
                mine, whole = cached(told)
                assert whole - 16 <= mine + 1 <= whole
                assert said(told) == said(alone.post(CHAT, json=chat(number, **more)).json())
            ahead.process.kill()
            await asyncio.to_thread(ahead.process.wait)
            async with client.post(CHAT, json=chat(9)) as answer:
                told = await answer.json()
                assert answer.status == 200 and "; alone;" in answer.headers["x-sapwood-route"]
            assert said(told) == said(alone.post(CHAT, json=chat(9)).json())

    run(case())
    metrics = behind.get("/metrics").text
    assert "sapwood_engine_fetches_total 3.0" in metrics and "sapwood_engine_fetches_failed_total 0.0" in metrics
    assert 'sapwood_engine_handoff_bytes_total{way="shm"}' in metrics
