"""One HTTP request as those who watch see it, from its arrival to the end of its response."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sapwood.observe.metrics import Meter


_SHOWN = 200  # characters of a path
UNANSWERED = 499  # as nginx counts those whose clients hung up before


@dataclass(slots=True, eq=False)
class Exchange:
    """Times are on the clock of `perf_counter`.

    Attributes:
        id: The request's, which its response bears too.
        endpoint: The route as metrics count it.
        headers: What the client says of its trace: `traceparent` and `tracestate`, where it does.
        key: The name of the API key, "" without one; never the key.
        status: Of the response, UNANSWERED until it has begun.
        ended: 0 before.
        meters: One for each generation.
    """

    id: str
    method: str
    path: str
    endpoint: str
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    status: int = UNANSWERED
    began: float = field(default_factory=perf_counter)
    ended: float = 0.0
    meters: list[Meter] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether something was sent."""
        return self.status != UNANSWERED

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def shown_path(self) -> str:
        """The path, which anybody may choose, as part of a line: no control characters, and not too much of it."""
        shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in self.path[:_SHOWN])
        return shown + "..." * (len(self.path) > _SHOWN)

    def told(self) -> dict[str, Any]:
        """The request in a few words and numbers, none of them its prompt's or its output's."""
        told: dict[str, Any] = {
            "method": self.method,
            "path": self.shown_path,
            "route": self.endpoint,
            "status": self.status,
            "seconds": round(self.seconds, 4),
        }
        if self.key:
            told["key"] = self.key
        if self.meters:
            told["generations"] = len(self.meters)
            told["prompt_tokens"] = sum(meter.num_prompt_tokens for meter in self.meters)
            told["cached_tokens"] = sum(meter.num_cached_tokens for meter in self.meters)
            told["output_tokens"] = sum(meter.num_output_tokens for meter in self.meters)
            firsts = [meter.first for meter in self.meters if meter.first]
            if firsts:
                told["first_token_seconds"] = round(min(firsts) - self.began, 4)
            told["finish"] = ",".join(dict.fromkeys(meter.reason for meter in self.meters))
        return told


# Tasks inherit it, which is what it is for: whatever a request sets going, here or in a library, is known to be its.
_CURRENT: ContextVar[Exchange | None] = ContextVar("sapwood.exchange", default=None)


def current() -> Exchange | None:
    """The request that is being served here, if it is not over."""
    exchange = _CURRENT.get()
    return None if exchange is None or exchange.ended else exchange


@contextlib.contextmanager
def within(exchange: Exchange) -> Iterator[None]:
    """All that is done in this context is done for `exchange`."""
    token = _CURRENT.set(exchange)
    try:
        yield
    finally:
        _CURRENT.reset(token)
