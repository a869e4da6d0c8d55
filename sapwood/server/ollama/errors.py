"""How Ollama words errors."""

from __future__ import annotations

import msgspec

from sapwood.server.errors import Problem


class OllamaError(msgspec.Struct):
    error: str


def envelope(told: Problem, request_id: str) -> bytes:
    """{"error": message}."""
    return msgspec.json.encode(OllamaError(told.message))
