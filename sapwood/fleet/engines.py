"""A server of a model as a replica of Ray Serve: it keeps the process, tells the register of it, and says how much it has to do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from sapwood.config import env
from sapwood.fleet.hosted import Hosted, NotServing
from sapwood.fleet.plan import Engine
from sapwood.fleet.scaling import Load

log = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_TELL_SECONDS = 5.0
_HEARD_SECONDS = 2.0  # until every router has heard that a server ends
_PATIENCE = 3  # looks in a row without an answer
_ANSWER = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=600.0)  # as long as it goes on


class EngineReplica:
    """One server. Ray Serve makes it, looks whether it is well, and ends it; `register` is a handle of the register."""

    def __init__(self, model: str, engine: Engine, key: str, register: Any, replica: str, node: str) -> None:
        self._model, self._engine, self._key = model, engine, key
        self._register, self._replica, self._node = register, replica, node
        self._load, self._missed, self._why = Load(), 0, ""
        self._draining = False

    async def begin(self) -> None:
        """Start the server. Raises NotServing when it does not come up; this is called before everything else."""
        engine, node = self._engine, self._node
        environment = env.inherited({"SAPWOOD_API_KEY": self._key, "PYTHONUNBUFFERED": "1", **engine.env})
        command = engine.command(self._model, node)
        self._hosted = Hosted(command, environment, host=node, key=self._key, drain=engine.drain_seconds)
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=_ANSWER)
        self._beating = asyncio.create_task(self._beats())
        try:
            await self._hosted.ready(engine.start_seconds)
            await self._tell()  # before anybody hears that it is ready
        except BaseException:
            await self.stop()
            raise

    async def wake(self) -> None:
        """Asked so that there is somebody to answer."""

    async def ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The answer to a request, piece by piece as it comes, for callers within the cluster. Raises NotServing for one that is no 200."""
        sent = {**headers, "authorization": f"Bearer {self._key}", "content-type": "application/json"}
        async with self._session.post(self._hosted.url + path, data=body, headers=sent) as answer:
            if answer.status != 200:
                raise NotServing(f"{answer.status}: {(await answer.text())[:2000]}")
            async for piece in answer.content.iter_any():
                yield piece

    async def check_health(self) -> None:
        """Raises NotServing for a server that is to be replaced: it has ended, does not answer, or was drained."""
        if self._missed >= _PATIENCE:
            raise NotServing(self._why)
        if self._draining and not self._load.running and not self._load.waiting:
            raise NotServing("The server was drained, and another takes its place.")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling goes by."""
        return {name: float(value) for name, value in self._load._asdict().items()}

    async def stop(self) -> None:
        """Nothing new for it; its answers end."""
        self._beating.cancel()  # nobody is to hear of it again
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_TELL_SECONDS):
                await self._register.leave.remote(self._replica, self._hosted.lines())
        if self._hosted.url:
            await asyncio.sleep(_HEARD_SECONDS)
        await self._hosted.stop()
        with contextlib.suppress(Exception):
            await self._register.leave.remote(self._replica, self._hosted.lines())
        await self._session.close()

    async def _beats(self) -> None:
        while True:
            await self._tell()
            await asyncio.sleep(_BEAT_SECONDS)

    async def _tell(self) -> None:
        await self._look()
        url = self._hosted.url if not self._missed else ""
        try:
            async with asyncio.timeout(_TELL_SECONDS):
                told = await self._register.tell.remote(
                    self._replica, self._model, url, self._node, self._load, self._hosted.lines()
                )
            self._load = self._load._replace(queued=told["queued"])
            self._draining = self._draining or told["drains"]
        except Exception as error:
            log.warning("the register does not answer: %s: %s", type(error).__name__, error)

    async def _look(self) -> None:
        if not self._hosted.url:
            return
        try:
            load = await self._hosted.load(self._session)
        except NotServing as error:
            self._missed, self._why = self._missed + 1, str(error)
            return
        self._missed = 0
        self._load = load._replace(queued=self._load.queued)
