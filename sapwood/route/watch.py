"""Looking after the servers: whether they answer, what they serve, where their names lead, and whether the table has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from sapwood.base.errors import ConfigError
from sapwood.route.discovery import Finder, way_of
from sapwood.route.fleet import Fleet, Replica
from sapwood.route.prefixes import Prefixes
from sapwood.route.table import Server, Table, read
from sapwood.route.upstream import said_to, sni

log = logging.getLogger(__name__)

_EVERY = 2.0  # seconds between two looks at a server
_PATIENCE = 2  # looks in a row that find nobody
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_NAMES_EVERY = 10.0
_TABLE_EVERY = 1.0


_T = TypeVar("_T", Replica, Server)


class _Named(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Named] = []


class Watch:
    """Keeps a fleet true; `path` is where its table was read from, if it was, `finders` how servers are looked up, and `changed` is called
    whenever somebody may have become able to answer, or have gone. `taken` hears of another table before it counts, and may raise
    ConfigError; `gone` hears of servers that are no more."""

    def __init__(
        self,
        fleet: Fleet,
        prefixes: Prefixes,
        session: aiohttp.ClientSession,
        path: Path | None,
        *,
        finders: Mapping[str, Finder],
        changed: Callable[[], None],
        taken: Callable[[Table], None] = lambda table: None,
        gone: Callable[[str], None] = lambda name: None,
        every: float = _EVERY,
        names_every: float = _NAMES_EVERY,
    ) -> None:
        self._fleet, self._prefixes, self._session = fleet, prefixes, session
        self._path, self._every, self._names_every = path, every, names_every
        self._finders, self._changed = finders, changed
        self._taken, self._gone = taken, gone
        self._looks: dict[int, asyncio.Task[None]] = {}  # by the identity of whom they are at
        self._read_at = self._written_at()

    async def first_look(self) -> None:
        """Before anybody is served. Raises ConfigError for servers that cannot be looked up here."""
        await self._settled(await self._resolve())
        await self._settled(await self._look_at_all())

    async def close(self) -> None:
        """Look at nobody any more."""
        looks = list(self._looks.values())
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    async def run(self) -> None:
        """For as long as the router serves."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._often(self._every, self._look_at_all))
            tasks.create_task(self._often(self._names_every, self._resolve))
            tasks.create_task(self._often(_TABLE_EVERY, self._look_at_table))

    @staticmethod
    async def _often(seconds: float, look: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await look()
            except Exception:
                log.exception("a look at the servers failed")

    @staticmethod
    async def _settled(looks: Sequence[asyncio.Task[None]]) -> None:
        """When all are through; raises what one raises, when all are."""
        for error in await asyncio.gather(*looks, return_exceptions=True):
            if error is not None:
                raise error

    # -- servers --------------------------------------------------------------------------------------------------

    async def _look_at_all(self) -> Sequence[asyncio.Task[None]]:
        """A look at each, as long as that takes; one at which somebody looks still is not looked at twice."""
        return [self._beside(replica, self._look_at) for replica in self._fleet.replicas.values()]

    def _beside(self, whom: _T, look: Callable[[_T], Awaitable[None]]) -> asyncio.Task[None]:
        if (going := self._looks.get(id(whom))) is None:

            async def looked() -> None:
                try:
                    await look(whom)
                    self._changed()
                finally:
                    del self._looks[id(whom)]

            going = self._looks[id(whom)] = asyncio.get_running_loop().create_task(looked())
            going.add_done_callback(_tell)
        return going

    async def _look_at(self, replica: Replica) -> None:
        models = await self._asked(replica)
        if models is None:
            replica.missed += 1
            if replica.alive and (replica.missed >= _PATIENCE or replica.models is None):
                log.warning("%s does not answer", replica.name)
                replica.alive = False
                if self._fleet.replicas.get(replica.name) is replica:
                    self._prefixes.forget(replica.name)  # whoever comes back has an empty cache
            return
        replica.missed = 0
        if replica.server.models is None:
            replica.models = models
        if not replica.alive:
            log.info("%s answers", replica.name)
            replica.alive = True
            replica.succeeded()

    async def _asked(self, replica: Replica) -> frozenset[str] | None:
        """What it serves: what is known of that, where it answers but does not say so now. None if it does not answer."""
        try:
            async with self._session.get(
                replica.url + "/v1/models",
                headers=said_to(replica) | {"accept-encoding": "identity"},
                timeout=_TIMEOUT,
                server_hostname=sni(replica),
            ) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        if response.status >= 500:
            return None
        try:
            if response.status == 200:
                return frozenset(one.id for one in msgspec.json.decode(body, type=_Models).data)
        except msgspec.DecodeError:
            pass
        if replica.models is None and replica.server.models is None:
            log.warning(
                "%s says %d at /v1/models, and not which models it has: give it a key, or models, in the table",
                replica.name,
                response.status,
            )
        return replica.models or frozenset()

    # -- names and the table --------------------------------------------------------------------------------------

    async def _resolve(self) -> Sequence[asyncio.Task[None]]:
        return [self._beside(server, self._look_up) for server in self._fleet.table.server if server.looked_up]

    async def _look_up(self, server: Server) -> None:
        try:
            found = await self._finders[way_of(server)[0]](server)
        except OSError as error:
            log.warning("%s cannot be looked up: %s", server.shown, error)
            return
        self._forget(self._fleet.set_addresses(server, found.urls, found.host))

    async def _look_at_table(self) -> None:
        if (written := self._written_at()) != self._read_at:
            self._read_at = written
            await self.read_again()

    async def read_again(self) -> None:
        """A table that cannot be used is logged, and the last one stays."""
        if self._path is None:
            return
        try:
            table = read(self._path)
            self._taken(table)
        except ConfigError as error:
            log.error("%s The table stays as it was.", error)
            return
        self._forget(self._fleet.set_table(table))
        log.info("%s was read again: %d servers", self._path, len(table.server))
        try:
            await self.first_look()
        except ConfigError as error:
            log.error("%s", error)

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self._prefixes.forget(name)
            if name not in self._fleet.replicas:
                self._gone(name)

    def _written_at(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


def _tell(look: asyncio.Task[None]) -> None:
    """Of one that failed, which nobody may be waiting for."""
    if not look.cancelled() and (error := look.exception()) is not None and not isinstance(error, ConfigError):
        log.error("a look at the servers failed", exc_info=error)
