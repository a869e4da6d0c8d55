"""A room of the server: routes that belong together, and how they word errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sapwood.server.errors import Envelope, ErrorEnvelope, openai_envelope
from sapwood.server.front import Front
from sapwood.server.passage import passage


class Room(NamedTuple):
    """A dialect, or what operators ask.

    Attributes:
        envelope: Words every error on its paths, those of the gate included.
        error: The struct of what `envelope` makes.
        overloaded: The status of a server that has too many requests.
        ids: The headers that tell a request's id.
        known_by: A header that its clients send: with it, errors are in this room's words on every path.
        admin: Its routes are for operators only; whoever else asks gets 403.
    """

    routes: Callable[[Front], Sequence[Route]]
    envelope: Envelope = openai_envelope
    error: type = ErrorEnvelope
    overloaded: int = 503
    ids: Sequence[str] = ("x-request-id",)
    known_by: str = ""
    admin: bool = False

    def placed(self, front: Front) -> Sequence[Route]:
        """Its routes as they are served."""
        routes = self.routes(front)
        for route in routes if self.admin else ():
            route.app = _for_operators(route.app, front)
        return routes


def _for_operators(app: ASGIApp, front: Front) -> ASGIApp:
    """The same route, closed to all others. Here and not by its path, which others may share, so that there is no way around."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        front.guard.check_operator(passage(scope, send).account.tenant, scope["path"])
        await app(scope, receive, send)

    return guarded
