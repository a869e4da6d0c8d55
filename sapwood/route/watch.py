"""Looking after the servers: whether they answer, what they serve, where their names lead, and whether the table has changed."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import msgspec

from sapwood.base.errors import ConfigError
from sapwood.route.fleet import Fleet, Replica
from sapwood.route.prefixes import Prefixes
from sapwood.route.table import Server, read

log = logging.getLogger(__name__)

_EVERY = 2.0  # seconds between two looks at a server
_PATIENCE = 2  # looks in a row that find nobody
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_NAMES_EVERY = 10.0
_TABLE_EVERY = 1.0


class _Named(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Named] = []


class Watch:
    """Keeps a fleet true; `path` is where its table was read from, if it was."""

    def __init__(
        self,
        fleet: Fleet,
        prefixes: Prefixes,
        session: aiohttp.ClientSession,
        path: Path | None,
        *,
        every: float = _EVERY,
    ) -> None:
        self._fleet, self._prefixes, self._session = fleet, prefixes, session
        self._path, self._every = path, every
        self._missed: dict[str, int] = {}
        self._read_at = self._changed_at()

    async def first_look(self) -> None:
        """Before anybody is served."""
        await self._resolve()
        await self._look_at_all()

    async def run(self) -> None:
        """For as long as the router serves."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._often(self._every, self._look_at_all))
            tasks.create_task(self._often(_NAMES_EVERY, self._resolve))
            tasks.create_task(self._often(_TABLE_EVERY, self._look_at_table))

    @staticmethod
    async def _often(seconds: float, look) -> None:  # type: ignore[no-untyped-def]
        while True:
            await asyncio.sleep(seconds)
            try:
                await look()
            except Exception:
                log.exception("a look at the servers failed")

    # -- servers --------------------------------------------------------------------------------------------------

    async def _look_at_all(self) -> None:
        await asyncio.gather(*(self._look_at(replica) for replica in list(self._fleet.replicas.values())))

    async def _look_at(self, replica: Replica) -> None:
        models = await self._asked(replica)
        if models is None:
            missed = self._missed[replica.name] = self._missed.get(replica.name, 0) + 1
            if replica.alive and (missed >= _PATIENCE or replica.models is None):
                log.warning("%s does not answer", replica.name)
                replica.alive = False
                self._prefixes.forget(replica.name)  # whoever comes back has an empty cache
            return
        self._missed[replica.name] = 0
        if replica.server.models is None:
            replica.models = models
        if not replica.alive:
            log.info("%s answers", replica.name)
            replica.alive = True
            replica.succeeded()

    async def _asked(self, replica: Replica) -> frozenset[str] | None:
        """What it serves; None if it does not answer."""
        key = replica.server.key
        headers = {} if key is None else {"authorization": f"Bearer {key}", "x-api-key": key}
        url = replica.url.removeprefix("dns+") + "/v1/models"
        try:
            async with self._session.get(url, headers=headers, timeout=_TIMEOUT) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        if response.status >= 500:
            return None
        try:
            return frozenset(one.id for one in msgspec.json.decode(body, type=_Models).data)
        except msgspec.DecodeError:
            return frozenset()

    # -- names and the table --------------------------------------------------------------------------------------

    async def _resolve(self) -> None:
        for server in self._fleet.table.server:
            if server.by_dns:
                try:
                    urls = await _addresses(server)
                except OSError as error:
                    log.warning("%s cannot be resolved: %s", server.shown, error)
                    continue
                self._forget(self._fleet.set_addresses(server, urls))

    async def _look_at_table(self) -> None:
        if (changed := self._changed_at()) != self._read_at:
            self._read_at = changed
            await self.read_again()

    async def read_again(self) -> None:
        """A table that cannot be used is logged, and the last one stays."""
        if self._path is None:
            return
        try:
            table = read(self._path)
        except ConfigError as error:
            log.error("%s The table stays as it was.", error)
            return
        self._forget(self._fleet.set_table(table))
        log.info("%s was read again: %d servers", self._path, len(table.server))
        await self.first_look()

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self._prefixes.forget(name)

    def _changed_at(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


async def _addresses(server: Server) -> list[str]:
    """The addresses that a server's name stands for, each as a URL of its own. Raises OSError."""
    parts = urlsplit(server.url.removeprefix("dns+"))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    hosts = sorted({str(address[0]) for *_, address in found})
    shown = [f"[{host}]" if ":" in host else host for host in hosts]
    return [urlunsplit((parts.scheme, f"{host}:{port}", parts.path, "", "")) for host in shown]
