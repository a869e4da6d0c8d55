"""Thoughts: where grammars begin behind them, and how long they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from sapwood.config import Config
from sapwood.config.flags import from_options
from sapwood.hub.files import ModelFiles
from sapwood.server import create_app
from sapwood.text import TextModel
from sapwood.text.parsers import Formats, Reasoning
from tests.server.fakes import MODEL, FakeEngine, make_text
from tests.server.test_tools import HELLO, THINKING, served

pytestmark = pytest.mark.anyio


async def test_grammars_begin_behind_thoughts(tmp_path: Path) -> None:
    async with served(tmp_path, THINKING) as (client, engine, _, _http):
        form = {"type": "json_object"}
        for thinking, after in ((True, "</think>"), (False, ""), (None, "")):
            await client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                response_format=form,
                extra_body={"enable_thinking": thinking},
                max_tokens=9,  # type: ignore[arg-type]
            )
            grammar = engine.asked[-1].params.grammar
            assert grammar is not None and grammar.after == after
            assert ("<think>" in grammar.text) == (thinking is None)
            assert (grammar.kind == "json_schema") == (thinking is False)


async def test_budgets(tmp_path: Path) -> None:
    config = from_options({"thinking_budget": 7})
    async with served(tmp_path, THINKING, config=config) as (client, engine, text, _):

        async def budget(**fields: Any) -> Any:
            await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=fields)
            return engine.asked[-1].params.thinking

        own = await budget(enable_thinking=True)
        assert (own.budget, own.open, text.decode(own.leave)) == (7, True, "\n</think>")
        for fields in (
            {"thinking_budget": 3},
            {"thinking_token_budget": 3},
            {"max_thinking_tokens": 3},
            {"chat_template_kwargs": {"thinking_budget": 3}},
        ):
            given = await budget(**fields)
            assert (given.budget, given.open) == (3, False)
        assert await budget(enable_thinking=False) is None


async def test_a_budget_of_a_format_that_says_no_way_out(tmp_path: Path) -> None:
    make_text(tmp_path, THINKING)
    own = Reasoning(begin="<think>", end="</think>", signs=("<think>",))
    text = TextModel.load(ModelFiles(MODEL, tmp_path, "hf", {}, {}), formats=Formats({}, {"own": own}))
    engine = FakeEngine(text)
    app = create_app(engine, text, Config(), MODEL)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        for fields in ({}, {"regex": "a+"}):
            body = {"messages": HELLO, "thinking_budget": 3, "enable_thinking": True, **fields}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
            thinking = engine.asked[-1].params.thinking
            assert thinking is not None and text.decode(thinking.leave) == "</think>"
    await app.state.front.close()
