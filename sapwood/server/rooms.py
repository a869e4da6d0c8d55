"""A room of the server: routes that belong together, and how they word errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from starlette.routing import Route

from sapwood.server.errors import Envelope, ErrorEnvelope, openai_envelope
from sapwood.server.front import Front


class Room(NamedTuple):
    """A dialect, or what operators ask. `envelope` words every error on its paths, those of the gate included;
    `error` is the struct of what it makes."""

    routes: Callable[[Front], Sequence[Route]]
    envelope: Envelope = openai_envelope
    error: type = ErrorEnvelope
