"""One attempt to have a request answered by one server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict

from sapwood.base.errors import RequestError
from sapwood.route.fleet import Replica
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


@dataclass
class _Sent:
    """Whether a request went over a connection that was there before."""

    reused: bool = False


def noting() -> aiohttp.TraceConfig:
    """For the session of an `Upstream`, which is to know of connections that were there before."""

    async def reused(session: aiohttp.ClientSession, context: Any, params: object) -> None:
        if isinstance(context.trace_request_ctx, _Sent):
            context.trace_request_ctx.reused = True

    made = aiohttp.TraceConfig()
    made.on_connection_reuseconn.append(reused)
    return made


class Upstream:
    """Sends requests on. Where `own_keys` says so those of clients are the router's own, and no server sees them."""

    def __init__(self, session: aiohttp.ClientSession, *, own_keys: Callable[[], bool]) -> None:
        self._session = session
        self._dropped = _HOPS | _OURS
        self._dropped_keys = self._dropped | _KEYS
        self._own_keys = own_keys

    async def send(
        self, replica: Replica, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> aiohttp.ClientResponse:
        """Raises Silent. A server that closes a connection that has rested, just as it is used again, has not failed: it is asked anew."""
        for attempt in range(1, _TRIES + 1):
            sent = _Sent()
            try:
                return await self._session.request(
                    method,
                    replica.url + path,
                    data=body,
                    headers=self._headers(replica, headers),
                    allow_redirects=False,
                    server_hostname=sni(replica),
                    trace_request_ctx=sent,
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                closed = isinstance(error, aiohttp.ClientConnectionError) and not isinstance(error, TimeoutError)
                if not (closed and sent.reused) or attempt == _TRIES:
                    raise Silent(f"{type(error).__name__}: {error}") from error
        raise AssertionError("the last attempt returns or raises")

    def whose(self, replica: Replica, headers: Mapping[str, str]) -> str:
        """Whom a server takes for the client: a digest of the client's own key, "" where it sees none or the router's."""
        if self._own_keys() or replica.server.key is not None:
            return ""
        given = "\0".join(headers.get(name, "") for name in sorted(_KEYS))
        return digest_of(given) if given != "\0" else ""

    def _headers(self, replica: Replica, headers: Mapping[str, str]) -> CIMultiDict[str]:
        own = self._own_keys() or replica.server.key is not None
        dropped = self._dropped_keys if own else self._dropped
        if (named := headers.get("connection", "").lower()) not in ("", "keep-alive", "close"):
            dropped = dropped | {name.strip() for name in named.split(",")}
        kept = CIMultiDict([pair for pair in headers.items() if pair[0].lower() not in dropped])
        kept["accept-encoding"] = "identity"
        kept.update(said_to(replica))
        return kept


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


async def whole(response: aiohttp.ClientResponse) -> Said:
    """All that a server says. Raises Silent if it hangs up before the end."""
    try:
        return Said(response.status, passed_on(response.headers), await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error


async def refusal(response: aiohttp.ClientResponse) -> Said:
    """What a server says that will not answer, the beginning of it. Raises Silent."""
    try:
        said = bytearray()
        while len(said) < _MOST_SAID and (piece := await response.content.read(_MOST_SAID - len(said))):
            said += piece
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error
    return Said(response.status, passed_on(response.headers), bytes(said))


async def next_piece(response: aiohttp.ClientResponse) -> bytes:
    """What has come of a stream, b"" at its end. Raises Silent."""
    try:
        return await response.content.readany()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error


def passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Those of an answer that are for the client."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOPS)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, 1 if it does not say."""
    given = headers.get("retry-after", "")
    return float(given) if given.isdigit() else 1.0
