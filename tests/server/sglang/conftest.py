"""These routes are partly for operators; here the client is one."""

from __future__ import annotations

import httpx
import pytest

from sapwood.config import Config
from sapwood.config.options import ServerConfig


@pytest.fixture
def config() -> Config:
    return Config(server=ServerConfig(admin_api_key="boss"))


@pytest.fixture
async def http(http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers["x-api-key"] = "boss"
    return http
