"""Lines of OpenAI's batches offline: the answers are those of the server's routes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import EngineDead
from sapwood.cli.batch import batch_lines
from sapwood.config import Config
from sapwood.hub.files import ModelFiles
from tests.server.fakes import MODEL, FakeEngine, make_text

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def line(url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {"custom_id": "x", "method": "POST", "url": url, "body": body or HELLO}


def answers(tmp_path: Path, *lines: dict[str, Any], dead: bool = False) -> list[dict[str, Any]]:
    text = make_text(tmp_path)

    async def collect() -> list[dict[str, Any]]:
        engine = FakeEngine(text)
        engine.failure = EngineDead("gone") if dead else None
        async with batch_lines(engine, text, Config(), ModelFiles(MODEL, tmp_path, "hf", {}, {})) as answer:
            return [await answer(one) for one in lines]

    return asyncio.run(collect())


def test_answers(tmp_path: Path) -> None:
    chat, response, completion = answers(
        tmp_path,
        line(**HELLO, model="gpt-4o"),
        line("/v1/responses", input="hello"),
        line("/v1/completions", prompt="x"),
    )
    assert chat["response"]["body"]["choices"][0]["message"]["content"].startswith("The cat")
    assert response["response"]["body"]["output"][0]["content"][0]["text"].startswith("The cat")
    assert completion["response"]["body"]["choices"][0]["text"].startswith("The cat")
    for one in (chat, response, completion):
        assert (one["custom_id"], one["response"]["status_code"], one["error"]) == ("x", 200, None)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (line() | {"custom_id": 3}, "invalid_line"),
        (line() | {"method": "GET"}, "invalid_method"),
        (line("/v1/audio/speech"), "mismatched_endpoint"),
        (line(**HELLO, stream=True), "invalid_line"),
    ],
)
def test_faults(tmp_path: Path, given: dict[str, Any], code: str) -> None:
    (result,) = answers(tmp_path, given)
    assert result["custom_id"] == given["custom_id"] and result["error"]["code"] == code


def test_requests_that_are_refused_and_an_engine_that_is_gone(tmp_path: Path) -> None:
    (refused,) = answers(tmp_path, line(messages=[]))
    assert refused["response"]["status_code"] == 400 and refused["response"]["body"]["error"]["param"] == "messages"
    (dead,) = answers(tmp_path, line(), dead=True)
    assert dead["response"] is None and dead["error"]["code"] == "engine_dead"
