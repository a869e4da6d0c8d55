"""A room of the server: routes that belong together, and how they word errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from starlette.routing import Route

from sapwood.server.errors import Envelope, openai_envelope
from sapwood.server.front import Front


class Room(NamedTuple):
    """A dialect, or what operators ask. `envelope` words every error on its paths, those of the gate included."""

    routes: Callable[[Front], list[Route]]
    envelope: Envelope = openai_envelope
