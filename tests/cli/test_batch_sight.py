"""Batches of a command, whose lines have images."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from sapwood.cli.batch import batch_lines
from sapwood.config import Config
from sapwood.hub.files import open_files
from sapwood.text import TextModel
from tests import seeing
from tests.http.test_sight import inline, shown, write_tokenizer
from tests.seeing import picture
from tests.server.fakes import FakeEngine


def test_lines_with_images(tmp_path: Path) -> None:
    path = seeing.save("qwen2.5-vl", tmp_path)
    write_tokenizer(path)
    files = open_files(path, name="seer")
    text = TextModel.load(files)

    async def answered() -> tuple[dict[str, Any], FakeEngine]:
        engine = FakeEngine(text)
        engine.facts = msgspec.structs.replace(engine.facts, media=("image",))
        async with batch_lines(engine, text, Config(), files) as answer:
            content = [shown(inline(picture(60, 45)))]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
            line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
            return await answer(line), engine

    said, engine = asyncio.run(answered())
    assert said["response"]["status_code"] == 200, said
    ((media, spans),) = engine.given
    assert [one.kind for one in media] == ["image"] and spans[0].length == media[0].length == 4
