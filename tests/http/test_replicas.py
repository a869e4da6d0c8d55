"""`sapwood serve -dp 2`: one address, two engines."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from tests.http.conftest import ADMIN, Server
from tests.waiting import eventually

PROMPT = "The quick brown fox jumps over the lazy dog. " * 2


def engines_of(server: Server) -> list[int]:
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in children if b"engine.process" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_two_engines_behind_one_address(tiny_model: Path) -> None:
    flags = ["-dp", "2", "--kv-cache-memory", "16M", "--served-model-name", "tiny", "--admin-api-key", ADMIN]
    server = Server(tiny_model, *flags)
    try:
        pids = engines_of(server)
        assert len(pids) == 2
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        first, again = (server.post("/v1/completions", json=body).json() for _ in range(2))
        assert again["choices"] == first["choices"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        server.post("/v1/completions", json=body | {"prompt": "Something else"})
        loads = server.get("/v1/loads").json()
        assert loads["dp_rank_count"] == 2 and [one["dp_rank"] for one in loads["loads"]] == [0, 1]
        metrics = server.get("/metrics").text
        for number in "01":
            assert f'sapwood_replica_up{{replica="{number}"}} 1.0' in metrics
        assert re.search(r'sapwood_engine_placed_total{reason="cached"} 1.0', metrics)
        assert re.search(r'sapwood_engine_placed_total{reason="new"} 2.0', metrics)
        assert server.post("/pause", params={"mode": "keep"}).status_code == 200
        assert server.get("/is_paused").json() == {"is_paused": True}
        assert server.post("/resume").status_code == 200 and not server.get("/is_paused").json()["is_paused"]
        assert len(server.get("/get_internal_state").json()) == 2
        os.kill(pids[0], signal.SIGKILL)
        eventually(lambda: any("reason" in one for one in server.health().json()["replicas"]))
        health = server.health()
        assert health.status_code == 200 and health.json()["status"] == "ok", "the other one goes on"
        assert server.post("/v1/completions", json=body).status_code == 200
        eventually(lambda: server.health().json()["restarts"] == 1)
        assert len(engines_of(server)) == 2
    finally:
        server.kill()
