"""Who comes first, where nobody has said."""

from __future__ import annotations

from sapwood.config.facts import DeviceFacts, ModelShape
from sapwood.config.options import Config


def policy(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[str, str]:
    server = config.server
    several = server.api_keys_file is not None or "," in (server.api_key or "")
    return ("fair", "each key has its turn") if several else ("fcfs", "all are equal")
