"""The API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers

from sapwood.base.errors import RequestError

# What load balancers and scrapers ask without a key. Everything else is guarded, paths that do not exist included.
OPEN_PATHS = frozenset({"/health", "/metrics", "/version"})


def check_key(key: str | None, path: str, headers: Headers) -> None:
    """Raise RequestError (401) unless the request may pass. The comparison takes the same time wherever keys differ."""
    if key is None or path in OPEN_PATHS:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise RequestError(
            "Missing or wrong API key; send it as 'Authorization: Bearer KEY'.", status=401, code="invalid_api_key"
        )
