"""One model under several names."""

from __future__ import annotations

import httpx
import pytest

from sapwood.config import Config
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio


async def test_a_model_of_several_names(engine: FakeEngine, text: TextModel, config: Config) -> None:
    app = create_app(engine, text, config, ("one", "two"))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        listed = (await http.get("/v1/models")).json()
        assert [card["id"] for card in listed["data"]] == ["one", "two"]
        assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("one", "two", False)
        for name, status in (("one", 200), ("two", 200), (None, 200), ("three", 404)):
            reply = await http.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 1})
            assert reply.status_code == status
            assert reply.json()["model"] == "one" if status == 200 else "'one', 'two'" in reply.text
            assert (await http.get(f"/v1/models/{name or 'one'}")).status_code == status
    await app.state.front.close()
