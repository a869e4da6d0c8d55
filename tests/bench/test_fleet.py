"""The simulated fleet: nothing is lost, time is what the card says, and policies differ as they should."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("fleet")


def talk(fleet: Any, name: str, *lengths: tuple[int, int], at: float = 0.0, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return fleet.Talk(at, name, [fleet.Turn(rng.integers(10, 99, n, dtype=np.int32), out, 1.0) for n, out in lengths])


def test_time_is_what_the_card_says(fleet: Any) -> None:
    card = fleet.Card(weights=0.01, row=0.001, read=0.0, prompt=0.0001, num_tokens=6400)
    first, second = fleet.Fleet(card, 1, "round_robin", longest=1000).run([talk(fleet, "a", (300, 3), (20, 1))])
    assert (first.at, first.cached, first.server) == (0.0, 0, "e0")
    assert first.first == pytest.approx(0.03)  # 300 tokens, which take longer than the weights
    assert first.end == pytest.approx(0.03 + 2 * 0.011) and first.itl == pytest.approx(0.011)
    assert second.at == pytest.approx(first.end + 1.0) and second.cached >= 256
    assert second.ttft == pytest.approx(0.01)


def test_caches_are_met_by_who_looks_for_them(fleet: Any) -> None:
    traces = importlib.import_module("traces")
    talks = traces.agents(2.0, 8.0, seed=1)
    assert [one.at for one in talks] == [one.at for one in traces.agents(2.0, 8.0, seed=1)]
    turns = sum(len(one.turns) for one in talks)
    hits = {}
    for policy in ("round_robin", "session", "cache_aware", "exact"):
        done = fleet.Fleet(fleet.H100_8B, 4, policy, longest=traces.LONGEST + 1).run(talks)
        assert len(done) == turns and all(one.at < one.first <= one.end for one in done)
        hits[policy] = fleet.figures(done, 4)["hit_%"]
    assert hits["round_robin"] < hits["session"] and hits["round_robin"] < hits["cache_aware"]
    assert hits["exact"] > hits["round_robin"]


def test_bursts_come_in_bursts(fleet: Any) -> None:
    traces = importlib.import_module("traces")
    at = np.array([one.at for one in traces.bursts(5.0, 400.0, seed=2)])
    dense, sparse = (at % 40 < 10).sum() / 100, (at % 40 >= 10).sum() / 300
    assert 3 < dense / sparse < 5 and 4 < len(at) / 400 < 6


def test_rows_and_pictures(fleet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, picture = tmp_path / "rows.jsonl", tmp_path / "picture.svg"
    args = [
        "--trace",
        "documents",
        "--replicas",
        "1",
        "2",
        "--rate",
        "2",
        "--seconds",
        "3",
        "--policies",
        "cache_aware",
    ]
    assert fleet.main([*args, "--json", str(rows), "--plot", str(picture)]) == 0
    assert [json.loads(line)["replicas"] for line in rows.read_text().splitlines()] == [1, 2]
    assert "documents x2 cache_aware" in capsys.readouterr().out and "<svg" in picture.read_text()


def test_a_trace_is_replayed(fleet: Any) -> None:
    """On a server that answers with the token 7, and says that all but the last 20 tokens were cached."""
    bodies: list[Any] = []

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def complete(request: web.Request) -> web.StreamResponse:
        bodies.append(body := await request.json())
        answer = web.StreamResponse(headers={"x-sapwood-server": f"s{len(bodies)}"})
        await answer.prepare(request)
        usage = {"prompt_tokens_details": {"cached_tokens": len(body["prompt"]) - 20}}
        events = [{"choices": [{"token_ids": [7]}]}] * body["max_tokens"] + [{"choices": [], "usage": usage}]
        for event in events:
            await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def main() -> list[Any]:
        app = web.Application()
        app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", complete)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            port = runner.addresses[0][1]
            turns = [
                fleet.Turn(np.arange(10, 60, dtype=np.int32), 2, 0.0),
                fleet.Turn(np.array([99], np.int32), 1, 0.0),
            ]
            replay = importlib.import_module("fleet_replay").replay
            return [
                fleet.Done(**one) for one in await replay(f"http://127.0.0.1:{port}/v1", [fleet.Talk(0.0, "a", turns)])
            ]
        finally:
            await runner.cleanup()

    first, second = asyncio.run(main())
    assert bodies[0]["prompt"] == [*range(10, 60)] and bodies[1]["prompt"] == [*range(10, 60), 7, 7, 99]
    assert (first.cached, second.cached, second.server) == (30, 33, "s2") and second.end >= second.first > first.end
