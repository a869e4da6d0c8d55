"""How serving ends: told to, or because the engine has died."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest

from sapwood.base.errors import EngineDead, ModelError
from sapwood.base.wire import Reading
from sapwood.catalogue import joined
from sapwood.cli import serve
from sapwood.cli.terminal import console, print_decisions
from sapwood.config import Config, ModelConfig, ServerConfig
from sapwood.engine.client import AsyncEngine
from tests.facts import make_facts


async def _for_ever() -> None:
    await asyncio.Event().wait()


def lively() -> AsyncEngine:
    return AsyncEngine(lambda message: None, make_facts(), max_live=1)


def test_a_dead_engine_ends_the_server_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "DEAD_SECONDS", 0.01)
    engine = lively()

    async def scenario() -> asyncio.Task[None]:
        serving = asyncio.create_task(_for_ever())
        asyncio.get_running_loop().call_later(0.01, engine.die, "killed")
        with pytest.raises(EngineDead, match="killed"):
            await serve._until_over(serving, engine)
        return serving

    assert asyncio.run(scenario()).cancelled()


def test_a_server_that_was_told_to_stop_ends_well() -> None:
    async def scenario() -> None:
        await serve._until_over(asyncio.create_task(asyncio.sleep(0.01)), lively())

    asyncio.run(scenario())


def test_what_the_server_raises_comes_through() -> None:
    async def fails() -> None:
        raise OSError("address in use")

    async def scenario() -> None:
        await serve._until_over(asyncio.create_task(fails()), lively())

    with pytest.raises(OSError, match="address in use"):
        asyncio.run(scenario())


def test_dummy_weights_need_no_weight_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert serve.find(_of_model(tmp_path, "dummy"), joined()).path == tmp_path
    with pytest.raises(ModelError, match="holds no weights"):
        serve.find(_of_model(tmp_path, "auto"), joined())


def _of_model(path: Path, load_format: Literal["auto", "dummy"]) -> Config:
    return Config(model=ModelConfig(model=str(path), load_format=load_format), server=ServerConfig(port=0))


def test_the_first_request_is_shown_with_the_key_that_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    facts = make_facts(decisions=["dtype = float32 (slow otherwise)"])
    serve._announce("http://host:1", "model", facts, 0.0, keyed=True)
    serve._announce("http://host:1", "model", facts, 0.0, keyed=False)
    keyed, plain = (line for line in capsys.readouterr().out.splitlines() if line.startswith("try:"))
    assert "Authorization: Bearer YOUR_KEY" in keyed
    assert "Authorization" not in plain


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({}, "/v1/chat/completions"),
        ({"media": ("audio",)}, "/v1/chat/completions"),  # it talks of recordings, and does not write what is said
        ({"media": ("audio",), "reading": Reading("audio", 1500)}, "/v1/audio/transcriptions"),
        ({"reading": Reading("tokens", 512)}, "/v1/completions"),
        ({"tasks": ("embed", "score")}, "/v1/embeddings"),
    ],
)
def test_the_first_request_is_one_that_the_model_answers(
    told: dict[str, Any], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    serve._announce("http://host:1", "model", make_facts(**told), 0.0, keyed=False)
    assert f"curl http://host:1{shown} " in capsys.readouterr().out


def test_decisions_are_aligned_and_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_decisions(
        console(),
        [
            "dtype = float32 (slow otherwise)",
            "kv_cache = 9 tokens (window 4) (3 pages of 3)",
            "odd",
            "a = 1 (so (as it is) and (so on))",
        ],
    )
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["dtype", "float32", "slow otherwise"],
        ["kv_cache", "9 tokens (window 4)", "3 pages of 3"],
        ["odd"],
        ["a", "1", "so (as it is) and (so on)"],
    ]
