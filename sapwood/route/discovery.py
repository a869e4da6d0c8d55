"""Where servers are that a table names by how they are found: `dns+http://NAME:PORT` is all addresses of the name; `kubernetes` is another way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

from sapwood.base.errors import ConfigError
from sapwood.route.table import Server


class Found(NamedTuple):
    """URLs of addresses, and what a server calls itself there."""

    urls: list[str]
    host: str


Finder = Callable[[Server], Awaitable[Found]]
"""Looks a server up. Raises OSError if that cannot be done now, ConfigError if it never can."""


def way_of(server: Server) -> tuple[str, SplitResult]:
    """How a server is found, and the URL of what is looked up."""
    way, _, rest = server.url.partition("+")
    return way, urlsplit(rest)


def found(parts: SplitResult, addresses: Iterable[str], port: int, host: str) -> Found:
    """Each address as a URL of its own."""
    shown = [f"[{address}]" if ":" in address else address for address in addresses]
    return Found([urlunsplit((parts.scheme, f"{address}:{port}", parts.path, "", "")) for address in shown], host)


async def by_dns(server: Server) -> Found:
    """All addresses of its name."""
    _, parts = way_of(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        known = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise ConfigError(f"{server.url} has no name that can be looked up: {error}.") from error
    return found(parts, sorted({str(address[0]) for *_, address in known}), port, parts.netloc.rpartition("@")[2])
