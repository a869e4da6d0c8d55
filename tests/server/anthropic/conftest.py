"""Anthropic's own client, without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from anthropic import AsyncAnthropic
from starlette.applications import Starlette


@pytest.fixture
async def claude(app: Starlette) -> AsyncIterator[AsyncAnthropic]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)) as http:
        yield AsyncAnthropic(api_key="none", base_url="http://test", http_client=http, max_retries=0)
