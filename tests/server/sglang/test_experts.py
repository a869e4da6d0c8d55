"""GET /experts: what engines say of theirs, and that most have nothing to say."""

from __future__ import annotations

import httpx
import pytest

from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio


async def test_what_is_told(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    told = {"ranks": 2, "tokens": [[3, 1]], "balance": [0.6667], "balance_with_replicas": [1.0]}
    engine.replies["experts"] = told
    assert (await http.get("/experts")).json() == [told]


async def test_engines_that_do_not_count_them(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.replies["experts"] = {"error": "unknown command 'experts'"}
    reply = await http.get("/experts")
    assert reply.status_code == 404 and "--enable-expert-parallel" in reply.json()["error"]["message"]
