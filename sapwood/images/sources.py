"""Where images come from: the request itself (data URLs), hosts that the operator names, and files below a directory that he names.

A host is resolved once, and what is connected to is the address that was looked at: names that lead to private networks, or lead
elsewhere the second time, reach nothing. Redirects are not followed. Bytes and time are bounded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import ssl
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

MOST_BYTES = 20 << 20
SECONDS = 10.0
_PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16
_LONG = 1 << 18  # characters that another thread decodes

Resolve = Callable[[str, int], Coroutine[Any, Any, list[str]]]


async def addresses(host: str, port: int) -> list[str]:
    """What a name leads to now."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)
    return [str(one[4][0]) for one in found]


def is_public(address: str) -> bool:
    """Whether it is an address of the internet, and none of a private network, of this machine, or of a group."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_global and not found.is_multicast


class Sources:
    """`hosts` are those from which images may be fetched, "name" or "name:port"; `root` is the directory below which files may lie."""

    def __init__(
        self,
        *,
        hosts: Collection[str] = (),
        root: str | None = None,
        resolve: Resolve = addresses,
        public: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._root = None if root is None else Path(root).resolve()
        self._resolve, self._public, self._tls = resolve, public, tls

    async def read(self, url: str) -> bytes:
        """The bytes behind a URL. Raises ValueError, saying why, for what cannot be had or may not."""
        scheme = url[:8].partition(":")[0].lower()
        match scheme:
            case "data":
                return await asyncio.to_thread(_inline, url) if len(url) > _LONG else _inline(url)
            case "http" | "https":
                return await self._fetched(url)
            case "file":
                return await asyncio.to_thread(self._file, url)
        raise ValueError("it must be a data: URL, or an http(s): or file: one that the server allows")

    def _file(self, url: str) -> bytes:
        if self._root is None:
            raise ValueError("this server reads no files (--allowed-local-media-path)")
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise ValueError("a file: URL names no host")
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            if not path.is_relative_to(self._root) or not path.is_file():
                raise ValueError("there is no such file below --allowed-local-media-path")
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except (OSError, RuntimeError):
            raise ValueError("there is no such file below --allowed-local-media-path") from None
        _check_size(len(data))
        return data

    # ---- over the network

    async def _fetched(self, url: str) -> bytes:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise ValueError("it is no URL") from None
        standard = _PORTS[parts.scheme.lower()]
        allowed = {f"{host}:{port or standard}"} | ({host} if port in (None, standard) else set())
        if not allowed & self._hosts:
            raise ValueError(f"this server fetches nothing from {host or 'nowhere'!r} (--allowed-media-domains)")
        try:
            async with asyncio.timeout(SECONDS):
                return await self._get(parts, host, port or standard)
        except TimeoutError:
            raise ValueError(f"{host} has not sent it within {SECONDS:g} s") from None
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"{host} cannot be reached: {type(error).__name__}") from None

    async def _get(self, parts: SplitResult, host: str, port: int) -> bytes:
        found = await self._resolve(host, port)
        if not found or not all(map(self._public, found)):
            raise ValueError(f"{host} leads to a private network")
        tls = None
        if parts.scheme.lower() == "https":
            tls = self._tls = self._tls or ssl.create_default_context()
        reader, writer = await asyncio.open_connection(
            found[0], port, ssl=tls, server_hostname=None if tls is None else host
        )
        try:
            return await _exchange(reader, writer, parts)
        finally:
            writer.transport.abort()  # a host has nothing more to say, and may not have its time to agree to the end


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parts: SplitResult) -> bytes:
    """One request and its answer. Raises ValueError for any but a whole 200."""
    import h11

    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = [
        ("Host", parts.netloc.rpartition("@")[2]),
        ("Accept", "image/*, audio/*, */*;q=0.5"),
        ("User-Agent", "sapwood"),
        ("Connection", "close"),
    ]
    connection, body = h11.Connection(h11.CLIENT), bytearray()
    try:
        sent = connection.send(h11.Request(method="GET", target=target, headers=headers))
        writer.write((sent or b"") + (connection.send(h11.EndOfMessage()) or b""))
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_CHUNK))
            elif isinstance(event, h11.Response):
                if event.status_code != 200:
                    more = "; redirects are not followed" if event.status_code in range(300, 400) else ""
                    raise ValueError(f"the host answers {event.status_code}{more}")
            elif isinstance(event, h11.Data):
                body += event.data
                _check_size(len(body))
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
    except h11.ProtocolError:
        raise ValueError("the host's answer is not whole") from None


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")


def _inline(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError("a data: URL is data:image/...;base64,..., or data:audio/...")
    _check_size(len(data) * 3 // 4 - 2)
    try:
        found = base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("its base64 is damaged") from None
    _check_size(len(found))
    return found
