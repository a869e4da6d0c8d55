"""Anthropic's messages."""

from __future__ import annotations

from sapwood.server.anthropic import messages
from sapwood.server.anthropic.errors import AnthropicError, envelope
from sapwood.server.rooms import Room

ROOM = Room(
    messages.routes,
    envelope,
    AnthropicError,
    overloaded=529,
    ids=("x-request-id", "request-id"),
    known_by="anthropic-version",
)
