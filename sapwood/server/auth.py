"""The API key. With one set, every path needs it but those that load balancers and scrapers ask."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers

from sapwood.base.errors import RequestError

# All others are guarded, those that do not exist included.
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})


def check_key(key: str | None, path: str, headers: Headers) -> None:
    """Raise RequestError (401) unless the request may pass. The comparison takes the same time wherever keys differ."""
    if key is None or path in OPEN_PATHS:
        return
    if not hmac.compare_digest(given_key(headers).encode("latin-1"), key.encode()):
        raise RequestError(
            "Missing or wrong API key; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            status=401,
            code="invalid_api_key",
        )


def given_key(headers: Headers) -> str:
    """The key that a request brings, OpenAI's way or Anthropic's; "" without one."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
