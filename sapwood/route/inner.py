"""What the router itself asks its servers: vectors, labels, counts, summaries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from sapwood.route.fleet import Fleet, Replica
from sapwood.route.upstream import said_to, sni

_TRIES = 2
_WRONG = (400, 413, 422)


class Unanswered(Exception):
    """Nobody answered, or not in time, or not what was asked."""


class Refused(Unanswered):
    """A server says that what it was asked is wrong: others may be asked well."""


class Late(Unanswered):
    """Nobody has answered in time."""


class Inner:
    """Asks the least loaded of the servers that have a model, with the server's own key. `left` is told when one has room again."""

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession, left: Callable[[], None]) -> None:
        self._fleet, self._session, self._left = fleet, session, left

    async def ask(self, model: str, path: str, body: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """The answer to a body, in which `model` is set. `timeout`: seconds for all attempts together. Raises Unanswered."""
        failed = Unanswered(f"no server has the model {model!r}")
        try:
            async with asyncio.timeout(timeout):
                for name in self._fleet.names(model):
                    there = sorted(self._fleet.able(name), key=lambda one: (one.busy() or not one.has_room, one.load))
                    for replica in there[:_TRIES]:
                        try:
                            return await self._of(replica, path, body | {"model": name})
                        except Unanswered as error:
                            failed = error
        except TimeoutError:
            failed = Late(f"{model} has not answered within {timeout:g} s")
        raise failed

    async def _of(self, replica: Replica, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"content-type": "application/json", "accept-encoding": "identity", **said_to(replica)}
        data, url = msgspec.json.encode(body), replica.url + path
        replica.enters()
        try:
            async with self._session.post(url, data=data, headers=headers, server_hostname=sni(replica)) as response:
                said = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered(f"{replica.name}: {type(error).__name__}: {error}") from error
        finally:
            replica.leaves()
            self._left()
        if response.status != 200:
            kind = Refused if response.status in _WRONG else Unanswered
            raise kind(f"{replica.name} says {response.status}: {said[:200].decode(errors='replace')}")
        try:
            return msgspec.json.decode(said, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Unanswered(f"{replica.name} answers with what is no JSON object: {error}") from error
