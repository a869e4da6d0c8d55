"""One attempt to have a request answered by one server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict

from sapwood.route.fleet import Replica

STREAMS = ("text/event-stream", "application/x-ndjson")
BUSY = (429, 503)
"""What a server says that would answer another time; others may now."""
BROKEN = (502, 504)

_HOPS = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade "
    "host content-length expect".split()
)
_KEYS = frozenset(("authorization", "x-api-key"))
_MOST_SAID = 64 << 10  # bytes of a refusal that are kept
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d+)')
_PARTS = re.compile(rb'"(?:input_tokens|output_tokens|prompt_eval_count|eval_count)"\s*:\s*(\d+)')


@dataclass(frozen=True)
class Said:
    """A whole answer."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


class Silent(Exception):
    """The server could not be asked, or hung up before it had answered anything."""


class Upstream:
    """Sends requests on. With `own_keys` those of clients are the router's own, and no server sees them."""

    def __init__(self, session: aiohttp.ClientSession, *, own_keys: bool) -> None:
        self._session, self._own_keys = session, own_keys

    async def send(
        self, replica: Replica, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> aiohttp.ClientResponse:
        """Raises Silent."""
        try:
            return await self._session.request(
                method,
                replica.url.removeprefix("dns+") + path,
                data=body,
                headers=self._headers(replica, headers),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Silent(f"{type(error).__name__}: {error}") from error

    def _headers(self, replica: Replica, headers: Mapping[str, str]) -> CIMultiDict[str]:
        secret = replica.server.key
        dropped = _HOPS | _KEYS if secret is not None or self._own_keys else _HOPS
        kept = CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)
        if secret is not None:
            kept["authorization"] = f"Bearer {secret}"
            kept["x-api-key"] = secret
        return kept


async def whole(response: aiohttp.ClientResponse) -> Said:
    """All that a server says. Raises Silent if it hangs up before the end."""
    try:
        return Said(response.status, passed_on(response.headers), await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error


async def refusal(response: aiohttp.ClientResponse) -> Said:
    """What a server says that will not answer, the beginning of it. Raises Silent."""
    try:
        said = await response.content.read(_MOST_SAID)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error
    return Said(response.status, passed_on(response.headers), said)


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


def tokens_in(pieces: Iterable[bytes]) -> int:
    """Tokens that the end of an answer says it has used, 0 if it does not."""
    tail = b"".join(pieces)
    if totals := _TOTAL.findall(tail):
        return int(totals[-1])
    return sum(int(part) for part in _PARTS.findall(tail)[-2:])
