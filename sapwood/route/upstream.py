"""One attempt to have a request answered by one server."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from multidict import CIMultiDict

from sapwood.base.errors import RequestError
from sapwood.route.fleet import Replica
from sapwood.route.wire import Address, Connection, Gone, Pool
from sapwood.server.keys import digest_of

STREAMS = ("text/event-stream", "application/x-ndjson")
BUSY = (429, 503)
"""What a server says that would answer another time; others may now."""
TOO_MANY = 429
"""The one of these that may be about the client alone, where the server knows clients."""
BROKEN = (502, 504)

_HOPS = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade "
    "host content-length expect".split()
)
_OURS = frozenset(
    ("accept-encoding", "content-encoding")
)  # bodies come unpacked, and answers are asked for as they are
_UNPACKED = (
    "",
    "identity",
    "gzip",
    "deflate",
    "br",
    "zstd",
)  # the last two where their libraries are; else nothing comes here
_KEYS = frozenset(("authorization", "x-api-key"))
_MOST_SAID = 64 << 10  # bytes of a refusal that are kept


@dataclass(frozen=True)
class Said:
    """A whole answer."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


_TRIES = 3  # of one request, where connections that were there turn out to be closed


class Silent(Exception):
    """The server could not be asked, or hung up before it had answered anything."""


class _Place(NamedTuple):
    """Where a URL leads: the address, what `Host` says, the path before that of a request, and who it says one is."""

    address: Address
    host: str
    prefix: str
    authorization: str | None


class Upstream:
    """Sends requests on. Where `own_keys` says so those of clients are the router's own, and no server sees them."""

    def __init__(self, pool: Pool, *, own_keys: Callable[[], bool]) -> None:
        self._pool = pool
        self._dropped = _HOPS | _OURS
        self._dropped_keys = self._dropped | _KEYS
        self._own_keys = own_keys

    async def send(
        self, replica: Replica, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Connection:
        """The answer, as far as its headers. Raises Silent. A server that closes a connection that has rested, just as it is used again,
        has not failed: it is asked anew."""
        place = _place(replica.url, sni(replica))
        head = self._head(replica, f"{method} {place.prefix}{path} HTTP/1.1", place, headers, len(body))
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._pool.ask(place.address, head, body)
            except (TimeoutError, OSError) as error:
                if not (isinstance(error, Gone) and error.at_once) or attempt == _TRIES:
                    raise Silent(f"{type(error).__name__}: {error}") from error
        raise AssertionError("the last attempt returns or raises")

    def whose(self, replica: Replica, headers: Mapping[str, str]) -> str:
        """Whom a server takes for the client: a digest of the client's own key, "" where it sees none or the router's."""
        if self._own_keys() or replica.server.key is not None or _place(replica.url, sni(replica)).authorization:
            return ""
        given = "\0".join(headers.get(name, "") for name in sorted(_KEYS))
        return digest_of(given) if given != "\0" else ""

    def _head(self, replica: Replica, line: str, place: _Place, headers: Mapping[str, str], length: int) -> bytes:
        own = self._own_keys() or replica.server.key is not None or place.authorization is not None
        dropped = self._dropped_keys if own else self._dropped
        if (named := headers.get("connection", "").lower()) not in ("", "keep-alive", "close"):
            dropped = dropped | {name.strip() for name in named.split(",")}
        lines = [line, f"host: {replica.host or place.host}", "accept-encoding: identity", f"content-length: {length}"]
        if place.authorization is not None:
            lines.append(f"authorization: {place.authorization}")
        told = said_to(replica)
        lines += [f"{name}: {value}" for name, value in told.items() if name != "host"]
        lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in dropped]
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
            raise RequestError("A header holds a line break.", status=400)
        return f"{head}\r\n\r\n".encode("utf-8", "surrogateescape")


@lru_cache(maxsize=4096)
def _place(url: str, name: str | None) -> _Place:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    host = parts.hostname or ""
    address = Address(host, parts.port or (443 if tls else 80), (name or host) if tls else None)
    named, _, there = parts.netloc.rpartition("@")
    authorization = f"Basic {b64encode(unquote(named).encode()).decode()}" if named else None
    return _Place(address, there, parts.path, authorization)


def said_to(replica: Replica) -> dict[str, str]:
    """Headers that a server is sent whatever it is asked: its own key, and the name that it goes by."""
    key, told = replica.server.key, {}
    if key is not None:
        told = {"authorization": f"Bearer {key}", "x-api-key": key}
    if replica.host:
        told["host"] = replica.host
    return told


def sni(replica: Replica) -> str | None:
    """The name that a server's certificate has to have, where that is not in its URL."""
    return urlsplit(f"//{replica.host}").hostname if replica.host else None


def check_encoding(headers: Mapping[str, str]) -> None:
    """Raise RequestError (415) unless a request's body comes as it is, or packed in a way that is unpacked here."""
    given = headers.get("content-encoding", "")
    if given.strip().lower() not in _UNPACKED:
        raise RequestError(
            f"content-encoding {given!r} is not read here: send gzip, deflate, or the body as it is.",
            param="content-encoding",
            status=415,
        )


async def whole(response: Connection) -> Said:
    """All that a server says. Raises Silent if it hangs up before the end."""
    try:
        return Said(response.status, passed_on(response.headers), await response.read())
    except (TimeoutError, OSError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error


async def refusal(response: Connection) -> Said:
    """What a server says that will not answer, the beginning of it. Raises Silent."""
    said = bytearray()
    while len(said) < _MOST_SAID and (piece := await next_piece(response)):
        said += piece
    return Said(response.status, passed_on(response.headers), bytes(said[:_MOST_SAID]))


async def next_piece(response: Connection) -> bytes:
    """What has come of a stream, b"" at its end. Raises Silent."""
    try:
        return await response.piece()
    except (TimeoutError, OSError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error


def passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Those of an answer that are for the client."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOPS)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, 1 if it does not say."""
    given = headers.get("retry-after", "")
    return float(given) if given.isascii() and given.isdigit() else 1.0
