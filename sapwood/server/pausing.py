"""Standing still and going on, whatever the route that asks: what becomes of those who run is a mode."""

from __future__ import annotations

import asyncio
from typing import Literal

from sapwood.server.front import Front

Mode = Literal["abort", "wait", "keep", "retract"]
"""Those under way end with what they have said; run to their ends; stay; or stay and give up their pages."""

_LOOK_SECONDS = 0.05


async def pause(front: Front, mode: Mode) -> None:
    """Nothing is computed from here on; who comes waits. Returns when that is so, which with 'wait' may take long."""
    match mode:
        case "abort":
            front.flights.abort()
            await front.engine.control("pause")
        case "wait":
            await front.engine.control("hold")
            await _over(front)
            await front.engine.control("pause")
        case "keep":
            await front.engine.control("pause")
        case "retract":
            await front.engine.control("pause")
            await front.engine.control("retract")


async def resume(front: Front) -> None:
    """Go on."""
    await front.engine.control("continue")


async def is_paused(front: Front) -> bool:
    return bool((await front.engine.control("status"))["paused"])


async def flush(front: Front, *, running: bool = False) -> int:
    """Forget cached prefixes; with `running` those of requests that run too, which compute them again. Returns the freed pages."""
    if running:
        await front.engine.control("retract")
    return int((await front.engine.control("flush_cache"))["freed_pages"])


async def _over(front: Front) -> None:
    """Wait until only those are left that are held."""
    while True:
        status = await front.engine.control("status")
        if status["running"] + status["waiting"] <= status["held"]:
            return
        await asyncio.sleep(_LOOK_SECONDS)
