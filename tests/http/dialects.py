"""Every route that generates, found from the document of a server's API, and how each is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STREAMS = {"text/event-stream", "application/x-ndjson"}
BROKEN: list[tuple[bytes, dict[str, str]]] = [
    (b"", {}),
    (b"{", {}),
    (b"[]", {}),
    (b"\xff\xfe", {}),
    (b"[" * 5000, {}),
    (b'{"a": NaN}', {}),
    (b'{"model": 5}', {}),
    (b'{"model": "another"}', {}),
    (b'{"model": "tiny", "model": "tiny"}', {}),
    (b'{"stream": "perhaps"}', {}),
    (b'{"prompt": "x", "max_tokens": -5, "messages": [], "input": 7, "text": 7, "options": 7}', {}),
    (b"{}", {"content-type": "text/plain"}),
    (b"x", {"content-encoding": "gzip"}),
    (b"{}", {"x-request-timeout": "never"}),
]
"""Bodies and headers that no route can serve."""


def body_of(path: str, text: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    """A body that asks for up to so many tokens, greedily; `more` are fields that the dialect is known to have."""
    messages = [{"role": "user", "content": text}]
    ollama = {"num_predict": max_tokens, "temperature": 0}
    bodies: Mapping[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": text, "max_tokens": max_tokens, "temperature": 0},
        "/v1/chat/completions": {"messages": messages, "max_tokens": max_tokens, "temperature": 0},
        "/generate": {"text": text, "sampling_params": {"max_new_tokens": max_tokens, "temperature": 0}},
        "/v1/apply": {"code": text, "update": "another", "method": "model", "max_tokens": max_tokens},
        "/v1/messages": {"messages": messages, "max_tokens": max_tokens, "temperature": 0},
        "/v1/responses": {"input": text, "max_output_tokens": max_tokens, "temperature": 0},
        "/api/chat": {"messages": messages, "options": ollama},
        "/api/generate": {"prompt": text, "options": ollama},
    }
    assert path in bodies, f"say here how {path} is asked to generate"
    return {"model": "tiny"} | bodies[path] | more


def generating(document: Mapping[str, Any]) -> list[str]:
    """The paths that take JSON and whose answers may be streams of what is generated, from /openapi.json."""
    return [
        path
        for path, methods in document["paths"].items()
        if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
        if STREAMS & set(methods.get("post", {}).get("responses", {}).get("200", {}).get("content", {}))
    ]
