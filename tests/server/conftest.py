"""A server on the fake engine, and clients that reach it without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from sapwood.config import Config
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine, make_text


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return make_text(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(text: TextModel) -> FakeEngine:
    return FakeEngine(text)


@pytest.fixture
def config() -> Config:
    return Config()


@pytest.fixture
async def app(engine: FakeEngine, text: TextModel, config: Config) -> AsyncIterator[Starlette]:
    app = create_app(engine, text, config, MODEL)
    yield app
    await app.state.front.close()


@pytest.fixture
async def http(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
async def client(http: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0)
