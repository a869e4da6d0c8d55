"""A room of the server: routes that belong together, and how they word errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from starlette.routing import Route

from sapwood.server.errors import Envelope, ErrorEnvelope, openai_envelope
from sapwood.server.front import Front


class Room(NamedTuple):
    """A dialect, or what operators ask.

    Attributes:
        envelope: Words every error on its paths, those of the gate included.
        error: The struct of what `envelope` makes.
        overloaded: The status of a server that has too many requests.
        ids: The headers that tell a request's id.
        known_by: A header that its clients send: with it, errors are in this room's words on every path.
    """

    routes: Callable[[Front], Sequence[Route]]
    envelope: Envelope = openai_envelope
    error: type = ErrorEnvelope
    overloaded: int = 503
    ids: Sequence[str] = ("x-request-id",)
    known_by: str = ""
