"""The page at /: chat, and the live picture of the server. Files of this package, and nothing from anywhere else.

It is open where a key is asked for: there is nothing in it but the page, which asks for the key itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sapwood.server.rooms import Room
from sapwood.server.routes import Media, plain

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"
_FOLDER = "/page/"
_SAFE = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Asset(NamedTuple):
    """A file as it is sent."""

    content: bytes
    type: str
    etag: str


def is_page(method: str, path: str, headers: Headers) -> bool:
    """Whether it is the page or a file of it that is asked for, and not one of the API's answers."""
    return method in ("GET", "HEAD") and (path.startswith(_FOLDER) or (path == "/" and _browses(headers)))


def opened(placed: Sequence[tuple[Route, Room]]) -> list[tuple[Route, Room]]:
    """`placed`, with the page for browsers where the root is, and the page's files."""
    assets = _assets()
    ((index, room),) = [(route, room) for route, room in placed if route.path == "/"]

    async def root(request: Request) -> Response:
        browses = _browses(request.headers)
        response: Response = _sent(request, assets[_INDEX]) if browses else await index.endpoint(request)
        response.headers["vary"] = "Accept"
        return response

    async def asset(request: Request) -> Response:
        """A file of the page for browsers, which is at / itself."""
        found = assets.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return _sent(request, found)

    root.__doc__ = index.endpoint.__doc__
    mine = [plain("/", root, gives=dict[str, Any]), plain(_FOLDER + "{name}", asset, gives=Media("*/*"))]
    return [*((route, room) for route in mine), *((route, room) for route, room in placed if route is not index)]


def _browses(headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "")


def _assets() -> dict[str, Asset]:
    """All files of this package that a browser is meant to have, by name: nothing else can be asked for."""
    found = {}
    for file in files(__name__).iterdir():
        type = next((type for suffix, type in _TYPES.items() if file.name.endswith(suffix)), None)
        if type is not None:
            content = file.read_bytes()
            found[file.name] = Asset(content, type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def _sent(request: Request, asset: Asset) -> Response:
    """The file, or 304 where the browser has this very one."""
    headers = _SAFE | {"etag": asset.etag, "cache-control": "no-cache", "content-type": asset.type}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers)
