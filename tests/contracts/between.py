"""What is done to engines between their steps, and changes no token."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from sapwood import LLM
from sapwood.base.handoff import Door, Fetch, Offer
from sapwood.base.task import Generate
from sapwood.base.wire import Delta, Deltas, Submit
from sapwood.engine import stores
from sapwood.engine.handoff import Handing
from sapwood.engine.loop import Engine
from sapwood.llm import Generation


def stand_still(patch: pytest.MonkeyPatch) -> None:
    """Pause after every third step, every other time giving up all slots, and go on after one in which nothing is planned."""
    step, turns = Engine.step, itertools.count()

    def stepped(engine: Engine) -> list[Deltas]:
        news, turn = step(engine), next(turns)
        if turn % 3 == 0:
            engine.control("pause")
            before = engine.counters["steps"]
            news += step(engine)
            assert engine.counters["steps"] == before
            if turn % 2 == 0:
                engine.control("retract")
            engine.control("continue")
        return news

    patch.setattr(Engine, "step", stepped)


def sleep(patch: pytest.MonkeyPatch) -> None:
    """Sleep and wake after every sixth step, every third time reading the weights again, where a file has them."""
    step, turns = Engine.step, itertools.count(1)

    def stepped(engine: Engine) -> list[Deltas]:
        news, turn = step(engine), next(turns)
        if turn % 6 == 0:
            if "use level 1" in engine.control("sleep", {"level": 1 if turn % 18 else 2}).get("error", ""):
                engine.control("sleep")
            assert engine.control("status")["asleep"]
            assert "error" not in engine.control("wake_up")
        return news

    patch.setattr(Engine, "step", stepped)


def renew(patch: pytest.MonkeyPatch) -> None:
    """Give the model of an LLM the weights that it has, as `renew_from` does."""
    generate, path = LLM.generate, ""

    def generated(llm: LLM, prompts: Any, params: Any = None) -> list[Generation]:
        nonlocal path
        path = llm.config.model.model
        return generate(llm, prompts, params)

    renew_from(patch, lambda: path)
    patch.setattr(LLM, "generate", generated)


def renew_from(patch: pytest.MonkeyPatch, path: Callable[[], str]) -> None:
    """Give the model the weights that it has, which lie there, after every seventh step, where they can be replaced."""
    step, turns = Engine.step, itertools.count(1)

    def stepped(engine: Engine) -> list[Deltas]:
        news = step(engine)
        if next(turns) % 7 == 0:
            answer = engine.control("update_weights", {"path": path(), "version": "default"})
            assert any(word in answer.get("error", "quantised") for word in ("quantised", "adapters"))
        return news

    patch.setattr(Engine, "step", stepped)


_BESIDE = 500_000  # what is added to the numbers of requests for those that compute for them


def hand_over(patch: pytest.MonkeyPatch) -> None:
    """Every third prompt is computed by one request and answered by another, which has it from its own engine as from any other; what the device
    keeps of it is forgotten after every fifth step."""
    handing, submit, step = stores.handing_of, Engine.submit, Engine.step
    doors: list[Door | None] = []
    turns = itertools.count()

    def handed(*args: Any) -> Handing:
        found = handing(*args)
        doors.append(found.door)
        return found

    def submitted(engine: Engine, message: Submit) -> Delta | None:
        door, ticket = doors[-1], str(message.id)
        if door is None or message.id % 3 or not isinstance(message.task, Generate):
            return submit(engine, message)
        submit(engine, replace(message, id=message.id + _BESIDE, handoff=Offer(ticket)))
        return submit(engine, replace(message, handoff=Fetch(ticket, door.host, door.port, early=True)))

    def stepped(engine: Engine) -> list[Deltas]:
        news = step(engine)
        if next(turns) % 5 == 0:
            engine.control("flush_cache")
        return news

    patch.setattr(stores, "handing_of", handed)
    patch.setattr(Engine, "submit", submitted)
    patch.setattr(Engine, "step", stepped)
