"""How Anthropic words errors."""

from __future__ import annotations

import msgspec

from sapwood.server.errors import OVERLOADED, Problem

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


class Trouble(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct, tag="error"):
    error: Trouble
    request_id: str


def envelope(told: Problem, request_id: str) -> bytes:
    """{"type": "error", "error": {type, message}, "request_id"}."""
    kind = _TYPES.get(told.status, "invalid_request_error" if told.status < 500 else "api_error")
    trouble = Trouble(OVERLOADED if told.kind == OVERLOADED else kind, told.message)
    return msgspec.json.encode(AnthropicError(trouble, request_id))
