"""Where each of several engines tells of its cache."""

from __future__ import annotations


def endpoint_of(endpoint: str, replica: int) -> str:
    """Where one of several engines tells: behind the ports of those before it, or at a path of its own."""
    head, colon, port = endpoint.rpartition(":")
    if not replica:
        return endpoint
    return f"{head}:{int(port) + replica}" if colon and port.isdecimal() else f"{endpoint}_dp{replica}"
