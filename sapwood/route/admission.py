"""Who may ask the router: one answer for all its paths."""

from __future__ import annotations

from aiohttp import web
from starlette.datastructures import Headers

from sapwood.server.auth import Guard
from sapwood.server.limits import Account

_KEYS = frozenset((b"authorization", b"x-api-key"))


def admitted(guard: Guard, request: web.Request, *, operator: bool = False) -> Account:
    """Whose request it is. Raises RequestError (401, 403) if it may not pass, or is no operator's and has to be."""
    keys = [(lower, value) for name, value in request.raw_headers if (lower := name.lower()) in _KEYS]
    account = guard.admit(Headers(raw=keys), request.path, trusted=False)
    if operator:
        guard.check_operator(account.tenant, request.path)
    return account
