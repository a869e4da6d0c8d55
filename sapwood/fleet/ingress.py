"""The router as a part of a fleet: where servers are it hears from the register, and it tells what waits, so that servers are begun."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sapwood.base.errors import ConfigError
from sapwood.config.options import ServerConfig
from sapwood.fleet.plan import Plan
from sapwood.route.app import Router, listening
from sapwood.route.discovery import Found
from sapwood.route.table import Server
from sapwood.server.door import Door

log = logging.getLogger(__name__)

_EVERY = 0.5  # seconds between two questions to the register
_TELL_SECONDS = 5.0
_DOOR_SECONDS = 60.0  # that another router may take to give up its address


class IngressReplica:
    """One router. `register` and `engines` are handles: the register's, and for each model one whose `wake` brings a server to life."""

    def __init__(
        self, plan: Plan, key: str, register: Any, engines: Mapping[str, Any], replica: str, node: str
    ) -> None:
        self._plan, self._key = plan, key
        self._register, self._engines = register, engines
        self._replica, self._node = replica, node
        self._urls: dict[str, list[str]] = {}
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._options = options(plan)
        self._router = Router(plan.table(key), self._options, finders={"fleet": self._find}, names_every=_EVERY)

    async def begin(self) -> None:
        """Listen. Raises ConfigError for an address that cannot be had; this is called before everything else."""
        self._stack = contextlib.AsyncExitStack()
        app = await self._stack.enter_async_context(self._router.serving())
        door = self._stack.enter_context(await self._door())
        await self._stack.enter_async_context(listening(app, door, self._options))
        self._url = door.url.replace("//0.0.0.0:", f"//{self._node}:").replace("//[::]:", f"//{self._node}:")
        self._telling = asyncio.create_task(self._tells())

    async def _door(self) -> Door:
        """Where the one before it still listens, as soon as that has gone."""
        until = asyncio.get_running_loop().time() + _DOOR_SECONDS
        while True:
            try:
                return Door(self._options)
            except ConfigError:
                if asyncio.get_running_loop().time() > until:
                    raise
            await asyncio.sleep(_EVERY)

    async def where(self) -> str:
        """Its URL."""
        return self._url

    async def before(self) -> tuple[Plan, str]:
        """What it was told, for `fleet up`, which tells the next one: the plan, and what servers want to be asked with."""
        return self._plan, self._key

    async def check_health(self) -> None:
        """Raises RuntimeError where it no longer asks who is there."""
        if self._telling.done():
            raise RuntimeError("the router has lost the register")

    async def stop(self) -> None:
        """Running answers end, and nobody is answered any more."""
        self._telling.cancel()
        for task in self._waking.values():
            task.cancel()
        await self._stack.aclose()

    async def _find(self, server: Server) -> Found:
        return Found(self._urls.get(server.name, []), "")

    async def _tells(self) -> None:
        while True:
            try:
                await self._tell()
            except Exception as error:
                log.warning("the register does not answer: %s: %s", type(error).__name__, error)
            await asyncio.sleep(_EVERY)

    async def _tell(self) -> None:
        queued = queued_by_server(self._router.waiting(), self._plan)
        async with asyncio.timeout(_TELL_SECONDS):
            self._urls |= await self._register.wants.remote(self._replica, self._url, queued)
        for model, count in queued.items():
            task = self._waking.get(model)
            if count and not self._urls.get(model) and (task is None or task.done()):
                self._waking[model] = asyncio.create_task(self._wake(model))

    async def _wake(self, model: str) -> None:
        with contextlib.suppress(Exception):  # asked again while requests wait
            await self._engines[model].wake.remote()


def queued_by_server(waiting: Mapping[str, int], plan: Plan) -> dict[str, int]:
    """Requests that wait, by the model of the servers that could answer: adapters are their model's, aliases what they stand for."""
    owners = {served: name for name, engine in plan.engine.items() for served in engine.served(name)}
    found = dict.fromkeys(plan.engine, 0)
    for model, count in waiting.items():
        if (owner := owners.get(model)) is not None:
            found[owner] += count
    return found


def options(plan: Plan) -> ServerConfig:
    """What the router is told beside its table. Raises ConfigError for files of keys that cannot be read."""
    ingress = plan.ingress
    return ServerConfig(
        host=ingress.host,
        port=ingress.port,
        api_key=_key(ingress.api_key_file),
        api_keys_file=plan.route.get("api_keys_file"),
        admin_api_key=_key(ingress.admin_api_key_file),
    )


def _key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The key in {path} cannot be read: {error}.") from error
