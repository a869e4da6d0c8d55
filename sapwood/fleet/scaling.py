"""How many servers of a model are needed."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple


class Load(NamedTuple):
    """What a server has to do.

    Attributes:
        running, waiting: Requests of it.
        tokens: Tokens of KV that running requests hold.
        queued: Requests that wait at routers for any server of its model: the same number for all of these.
    """

    running: float = 0.0
    waiting: float = 0.0
    tokens: float = 0.0
    queued: float = 0.0


def needed(loads: Sequence[Load], target_requests: float, target_tokens: float | None) -> int:
    """As many as have `target_requests` each of those that run and wait, here and at routers, and hold `target_tokens` each; 0 where nobody
    asks for anything. Servers that nothing is known of yet count as idle ones do: not at all."""
    requests = sum(one.running + one.waiting for one in loads) + max((one.queued for one in loads), default=0.0)
    by_requests = ceil(requests / target_requests)
    by_tokens = ceil(sum(one.tokens for one in loads) / target_tokens) if target_tokens is not None else 0
    return max(by_requests, by_tokens)
