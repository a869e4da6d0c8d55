"""People's clients through a router to servers of our own, whose engines are played."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ollama
import pytest
import uvicorn
from aiohttp import web
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, NotFoundError

from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.route.app import Router
from sapwood.route.table import checked
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.route.mock import until
from tests.route.test_proxy import run
from tests.server.fakes import MODEL, FakeEngine, make_text

HELLO: Any = [{"role": "user", "content": "hello"}]


@contextlib.asynccontextmanager
async def server(text: TextModel) -> AsyncIterator[tuple[str, FakeEngine]]:
    engine = FakeEngine(text, max_model_len=2048)
    app = create_app(engine, text, Config(), MODEL)
    serving = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    task = asyncio.ensure_future(serving.serve())
    await until(lambda: serving.started)
    try:
        yield f"http://127.0.0.1:{serving.servers[0].sockets[0].getsockname()[1]}", engine
    finally:
        serving.should_exit = True
        await task
        await app.state.front.close()


@contextlib.asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[tuple[str, list[FakeEngine]]]:
    """A router before two servers, with a name for their model."""
    text = make_text(folder)
    async with server(text) as (first, one), server(text) as (second, other):
        table = {
            "server": [{"url": first, "name": "one"}, {"url": second, "name": "other"}],
            "model": {"fast": {"to": [MODEL]}},
            "policy": "round_robin",
        }
        router = Router(checked(table, "a test"), ServerConfig(api_key="k"))
        async with router.serving() as app:
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}", [one, other]
            await runner.cleanup()


def test_clients_of_openai_anthropic_and_ollama(tmp_path: Path) -> None:
    async def case() -> None:
        async with fleet(tmp_path) as (url, engines):
            openai = AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)
            assert [model.id async for model in openai.models.list()] == ["fast", MODEL]
            whole = await openai.chat.completions.create(model="fast", messages=HELLO)
            said = whole.choices[0].message.content
            stream = await openai.chat.completions.create(
                model=f"{MODEL}:latest", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert told == said and said and chunks[-1].usage
            response = await openai.responses.create(model="fast", input="hello")
            assert response.output_text == said
            with pytest.raises(NotFoundError) as refused:
                await openai.chat.completions.create(model="none", messages=HELLO)
            assert refused.value.code == "model_not_found"

            anthropic = AsyncAnthropic(api_key="k", base_url=url, max_retries=0)
            message = await anthropic.messages.create(model="fast", messages=HELLO, max_tokens=300)
            assert message.content[0].type == "text" and message.content[0].text == said
            async with anthropic.messages.stream(model="fast", messages=HELLO, max_tokens=300) as events:
                assert await events.get_final_text() == said

            local = ollama.AsyncClient(url, headers={"authorization": "Bearer k"})
            answer = await local.chat(model="fast:latest", messages=HELLO)
            assert answer.message.content == said
            pieces = [piece async for piece in await local.generate(model="fast", prompt="hello", stream=True)]
            assert len(pieces) > 1 and pieces[-1].done
            assert all(len(engine.asked) >= 3 for engine in engines)  # by turns
            for client in (openai, anthropic):
                await client.close()
            await local._client.aclose()

    run(case())
