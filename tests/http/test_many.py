"""Two models behind one front, each an engine's process, of which one is awake at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import OpenAI

from tests.http.conftest import ADMIN, Server
from tests.waiting import SECONDS


@pytest.mark.slow
def test_two_models_behind_one_front(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        f'[models.a]\nmodel = "{tiny_model}"\nmax_total_tokens = 2048\n'
        f'[models.b]\nmodel = "{tiny_model}"\nmax_total_tokens = 2048\naliases = ["gpt-4o"]\n'
    )
    server = Server(tiny_model, "--models", str(file), "--max-loaded-models", "1", "--admin-api-key", ADMIN)
    try:
        client = OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0, timeout=SECONDS)

        def say(model: str) -> str:
            reply = client.completions.create(model=model, prompt="Hello", max_tokens=8, temperature=0)
            assert reply.model == {"a": "a"}.get(model, "b")
            return reply.choices[0].text

        def states() -> dict[str, str]:
            return {card["id"]: card["state"] for card in server.get("/v1/models").json()["data"]}

        assert set(states().values()) == {"unloaded"}
        first = say("a")
        assert states()["a"] == "ready"
        for model in ("b", "a", "gpt-4o"):
            assert say(model) == first  # the same weights
        assert states() == {"a": "asleep", "b": "ready", "gpt-4o": "ready"}
        assert 'sapwood_engine_sleeps_total{model="a"} ' in server.get("/metrics").text
        assert server.post("/models/unload", json={"model": "a"}).json()["state"] == "unloaded"
        assert say("a") == first
        assert server.stop() == 0, server.output
    finally:
        server.kill()
