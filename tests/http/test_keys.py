"""Keys against a real engine: whose prefixes are found, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.conftest import Server
from tests.waiting import SECONDS

PROMPT = "The quick brown fox jumps over the lazy dog, and then over the next one, and over all of them again. "
KEYS = [
    {"name": name, "key": name, "group": group} for name, group in (("a", None), ("b", None), ("c", "g"), ("d", "g"))
]


@pytest.fixture(scope="module")
def keyed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(json.dumps({"keys": KEYS}))
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--api-keys-file", str(file))
    yield server
    assert server.stop() == 0, server.output


def ask(server: Server, key: str, prompt: str = PROMPT) -> httpx.Response:
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 4, "temperature": 0}
    headers = {"authorization": f"Bearer {key}", "x-sapwood-explain-cache": "1"}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=SECONDS)
    assert reply.status_code == 200, reply.text
    return reply


def cached(reply: httpx.Response) -> int:
    found: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_no_key_finds_what_another_has_asked(keyed: Server) -> None:
    assert [cached(ask(keyed, key)) for key in "ab"] == [0, 0]
    assert all(cached(ask(keyed, key)) >= len(PROMPT) - 16 for key in "ab")
    assert [cached(ask(keyed, key)) > 0 for key in "cd"] == [False, True], "a group shares"


def test_where_a_prompt_differs(keyed: Server) -> None:
    ask(keyed, "a", "First. " + PROMPT + "One.")
    reply = ask(keyed, "a", "First. " + PROMPT.replace("lazy", "busy") + "One.")
    told = json.loads(reply.headers["x-sapwood-cache"])
    at = told["differs_at"]
    assert told["prompt_tokens"] == reply.json()["usage"]["prompt_tokens"]
    assert told["cached_tokens"] <= cached(reply) <= at < told["prompt_tokens"]
    assert told["before"].endswith("the ") and told["here"].startswith("busy") and told["instead"].startswith("lazy")
    other = json.loads(ask(keyed, "b", "First. " + PROMPT).headers["x-sapwood-cache"])
    assert other["instead"] is None or "First" not in other["instead"]


def test_keys_take_turns_by_default(keyed: Server) -> None:
    assert re.search(r"policy +fair", keyed.output)
