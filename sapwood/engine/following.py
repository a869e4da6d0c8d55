"""Following one generation, whatever engine it is of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta

if TYPE_CHECKING:
    from sapwood.engine.client import EngineClient, Follower


def wake(woken: dict[Follower, None]) -> None:
    """Everybody who has news, once."""
    for follower in woken:
        follower.wake()
    woken.clear()


class Bell:
    """A follower that can be waited for."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def wake(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung.clear()


async def generated(
    engine: EngineClient, tokens: list[int], params: SamplingParams, **how: Any
) -> AsyncGenerator[Delta]:
    """Yield a generation's news until the one with `finish`; closing the generator aborts the request. `how` is as `submit` takes it.

    Raises what `submit` and `Stream.take` raise.
    """
    bell = Bell()
    stream = engine.submit(tokens, params, bell, **how)
    try:
        finish = None
        while finish is None:
            await bell.wait()
            delta = stream.take()
            if delta is not None:
                finish = delta.finish
                yield delta
    finally:
        stream.close()
