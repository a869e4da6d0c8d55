"""Sleep and waking, whatever the route that asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sapwood.base.errors import RequestError
from sapwood.base.weights import ALL, Held, Level
from sapwood.server import pausing
from sapwood.server.front import Front

Mode = Literal["keep", "wait", "abort"]
"""What becomes of requests under way: they go on when the engine is woken, run to their ends first, or end with what they have said."""


async def sleep(front: Front, *, level: Level = 1, held: Sequence[Held] = ALL, mode: Mode = "keep") -> list[Held]:
    """Have the engine give back what it holds; what is away then. Raises RequestError for a level that cannot be."""
    stood = mode != "keep" and await pausing.is_paused(front)  # and goes on doing so
    if stood and mode == "abort":
        front.flights.abort()
    elif mode != "keep" and not stood:
        await pausing.pause(front, mode)
    try:
        answer = await front.engine.control("sleep", {"level": level, "held": list(held)})
    finally:
        if mode != "keep" and not stood:
            await pausing.resume(front)  # it is sleep that holds them now
    return _away(answer, "level")


async def wake(front: Front, held: Sequence[Held] = ALL) -> list[Held]:
    """Have it take that again; what is away still."""
    return _away(await front.engine.control("wake_up", {"held": list(held)}), "tags")


async def away(front: Front) -> list[Held]:
    """What the engine has given back."""
    return list((await front.engine.control("status"))["asleep"])


def _away(answer: dict[str, Any], param: str) -> list[Held]:
    if why := answer.get("error"):
        raise RequestError(why, param=param, code="cannot_sleep")
    return list(answer["asleep"])
