"""An engine that dies or hangs is followed by another, as often as it may, and everybody hears why."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from sapwood.base.errors import EngineDead
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Deltas
from sapwood.config.flags import from_options
from sapwood.engine import client, keeper, spawn
from sapwood.engine.client import AsyncEngine
from sapwood.engine.line import Line, Post
from tests.engine import fake_process
from tests.facts import make_facts
from tests.waiting import SECONDS, within


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_PAUSES", (0.0,))


@asynccontextmanager
async def kept(
    folder: Path, ways: str, monkeypatch: pytest.MonkeyPatch, **options: float
) -> AsyncIterator[AsyncEngine]:
    monkeypatch.setattr(spawn, "COMMAND", (sys.executable, fake_process.__file__, ways, str(folder)))
    async with keeper.start(from_options({"model": "none", **options})) as engine:
        yield engine


async def ask(engine: AsyncEngine) -> list[int]:
    return [t async for delta in engine.generate([1, 2], SamplingParams(max_tokens=1)) for t in delta.tokens]


async def until(engine: AsyncEngine, *, restarts: int) -> None:
    deadline = monotonic() + SECONDS
    while engine.restarts < restarts or engine.dead is not None:
        assert monotonic() < deadline, "it was not started again"
        await asyncio.sleep(0.01)


def lives(folder: Path) -> int:
    return (folder / "lives").read_text().count("\n")


def process_of(folder: Path) -> int:
    return int((folder / "begun").read_text())


def test_a_killed_engine_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in flight ends with the reason; what comes later is served."""

    async def scenario() -> None:
        async with kept(tmp_path, "serves,answers", monkeypatch) as engine:
            engine.end_at([9])
            running, asked = asyncio.create_task(ask(engine)), asyncio.create_task(engine.control("status"))
            await asyncio.sleep(0)
            os.kill(process_of(tmp_path), signal.SIGKILL)
            for task in (running, asked):
                with pytest.raises(EngineDead, match="SIGKILL") as caught:
                    await within(task)
                assert caught.value.retry_after is not None and caught.value.retry_after >= 1
            assert await engine.trouble() == engine.dead and not engine.lost.is_set()
            await until(engine, restarts=1)
            assert await within(ask(engine)) == [7]
            assert engine.facts.eos_ids == [9] and await engine.trouble() is None and engine.retry_after is None
        assert engine.dead is not None

    asyncio.run(scenario())


def test_a_stopped_engine_is_killed_and_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle or not: it is noticed as soon as somebody waits for it."""

    async def scenario() -> None:
        async with kept(tmp_path, "answers", monkeypatch, watchdog_timeout=0.2) as engine:
            stopped = process_of(tmp_path)
            os.kill(stopped, signal.SIGSTOP)
            with pytest.raises(EngineDead, match="nothing has been heard"):
                await within(ask(engine))
            await until(engine, restarts=1)
            with pytest.raises(ProcessLookupError):
                os.kill(stopped, 0)
            assert await within(ask(engine)) == [7]

    asyncio.run(scenario())


def test_a_step_without_end_is_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the process says that it lives."""

    async def scenario() -> None:
        async with kept(tmp_path, "works,answers", monkeypatch, watchdog_timeout=1.0) as engine:
            with pytest.raises(EngineDead, match="a step has not ended within 1 s"):
                await within(ask(engine))
            await until(engine, restarts=1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("ways", "says"),
    [("dies", "exit code 7"), ("dies,breaks", "could not be started again"), ("dies,stays", "has not become ready")],
)
def test_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: str, says: str) -> None:
    monkeypatch.setattr(keeper, "START_SECONDS", 0.1)
    monkeypatch.setattr(keeper, "EXIT_SECONDS", 0.1)

    async def scenario() -> None:
        async with kept(tmp_path, ways, monkeypatch, max_engine_restarts=2) as engine:
            await within(engine.lost.wait())
            assert says in (engine.dead or "") and engine.retry_after is None and lives(tmp_path) == 3
            with pytest.raises(EngineDead) as caught:
                await ask(engine)
            assert caught.value.retry_after is None

    asyncio.run(scenario())


def test_old_restarts_do_not_count() -> None:
    restarts = keeper._Restarts(2)
    long = keeper.RESTART_SECONDS + 1
    found = [restarts.pause(now) is not None for now in (0, 1, 2, long, long, long + 1, long + 2)]
    assert found == [True, True, False, True, False, True, False]


def test_an_idle_engine_that_does_not_answer_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once, whoever wants to know; what answers later is well again."""
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.05)

    async def scenario() -> None:
        asked: list[object] = []
        engine = AsyncEngine(asked.append, make_facts(), max_live=9)
        assert await engine.trouble() is None and not asked, "it was heard just now"
        engine.vitals.heard -= 1000
        for found in await asyncio.gather(engine.trouble(), engine.trouble()):
            assert found is not None and "does it answer" in found
        assert len(asked) == 1 and engine.vitals.silent_seconds < 900, "nobody had waited for it"
        engine.receive([Deltas([], [], [])])
        assert await engine.trouble() is None
        engine.vitals.heard -= 1000
        engine.die("struck by lightning")
        assert await engine.trouble() == "struck by lightning"

    asyncio.run(scenario())


def test_whatever_is_wrong_with_what_the_engine_says_ends_it_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even what can be read, and means nothing."""

    async def scenario() -> None:
        with spawn.spawn((sys.executable, "-c", "input()")) as child:
            line, post = Line(str(tmp_path)), Post(str(tmp_path))
            ended = asyncio.create_task(keeper._end_of(child))
            engine = AsyncEngine(lambda message: None, make_facts(), max_live=9)
            life = keeper._Life(child, line, ended, engine.facts)
            post.send(Deltas([1, 2], [7], []))  # two requests, one token
            assert "ValueError" in await within(keeper._follow(engine, life, limit=SECONDS))
            assert await within(ended) == -signal.SIGKILL
            post.close()
            line.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("code", "says"), [(-9, "SIGKILL (out of memory?)"), (-40, "signal 40"), (3, "exit code 3")])
def test_how_it_ended(code: int, says: str) -> None:
    assert says in keeper._how_it_ended(code)
