"""How tests wait: for what they assert, and never for less than a busy machine may need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 300.0
"""The only bound. It says that something hangs, not how long it may take."""


def eventually(found: Callable[[], T]) -> T:
    """What `found` returns once that is something true."""
    deadline = time.monotonic() + SECONDS
    while not (result := found()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return result


async def within(awaitable: Awaitable[T]) -> T:
    """Its result; an error if it hangs."""
    return await asyncio.wait_for(awaitable, SECONDS)
