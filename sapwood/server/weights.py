"""Other weights for the model that is served, whatever the route that brings them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from sapwood.base.errors import EngineDead, RequestError
from sapwood.base.weights import Given, Group, Sent
from sapwood.server import pausing
from sapwood.server.front import Front

Mode = Literal["finish", "abort", "keep"]
"""Requests under way end first, while others wait; end with what they have said; or go on with the new weights, which compute anew
what has been said."""

_SHARED = Path("/dev/shm")

_PAUSES: dict[Mode, pausing.Mode] = {"finish": "wait", "abort": "abort", "keep": "keep"}


class Updates:
    """Of one server, one after the other."""

    def __init__(self, front: Front) -> None:
        self._front, self._lock = front, asyncio.Lock()

    async def take(self, given: Given, *, mode: Mode, version: str | None, param: str) -> dict[str, Any]:
        """The engine's answer: `weight_version` and `seconds`. Nothing is computed meanwhile; an engine that stood still goes on doing so.

        Raises RequestError, about the field `param`, if the weights cannot be taken, and the old ones are there still; EngineDead if an
        update has failed midway, after which the engine is started again with the weights of its start.
        """
        about = msgspec.structs.asdict(given) | {"version": version}
        async with self._lock, self._still(mode):
            return await self._tell("update_weights", about, param=param)

    async def join(self, group: Group) -> None:
        """Have the engine be in a trainer's group, which waits for all of its processes. Raises RequestError."""
        if len(self._front.engine.replicas) > 1:
            raise RequestError(
                "rank_offset: several engines (--data-parallel-size) would all be the same ranks. Serve them apart, and have each join.",
                param="rank_offset",
            )
        await self._tell("join_group", msgspec.structs.asdict(group), param="group_name")

    async def leave(self, group_name: str) -> None:
        """Raises RequestError if there is none of that name."""
        await self._tell("leave_group", {"group_name": group_name}, param="group_name")

    async def receive(
        self, sent: Sent, *, mode: Mode, version: str | None, checksums: dict[str, str]
    ) -> dict[str, Any]:
        """The same as `take`, of what a trainer sends meanwhile."""
        with tempfile.TemporaryDirectory(prefix="sapwood-", dir=_SHARED if _SHARED.is_dir() else None) as folder:
            async with self._lock, self._still(mode):
                await self._tell("receive_weights", msgspec.structs.asdict(sent) | {"folder": folder}, param="names")
                given = Given(path=folder, whole=False, checksums=checksums)
                return await self._tell(
                    "update_weights", msgspec.structs.asdict(given) | {"version": version}, param="names"
                )

    async def _tell(self, what: str, about: dict[str, Any], *, param: str) -> dict[str, Any]:
        answer = await self._front.engine.control(what, about)
        if why := answer.get("error"):
            raise RequestError(why, param=param, code="weights_refused")
        return answer

    @contextlib.asynccontextmanager
    async def _still(self, mode: Mode) -> AsyncIterator[None]:
        if await pausing.is_paused(self._front):
            yield
            return
        await pausing.pause(self._front, _PAUSES[mode])
        try:
            yield
        finally:
            with contextlib.suppress(EngineDead):
                await pausing.resume(self._front)


async def version_of(front: Front) -> str:
    """That of the weights, as the engine says it."""
    return str((await front.engine.control("status"))["weight_version"])
