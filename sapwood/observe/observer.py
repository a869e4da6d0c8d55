"""Whoever watches requests: metrics count them, the log has a line of each, traces have their spans."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any, Protocol

from sapwood.base.errors import ConfigError
from sapwood.observe.exchange import Exchange, within
from sapwood.observe.metrics import Metrics

log = logging.getLogger(__name__)


class Traces(Protocol):
    """Where the spans of requests go."""

    def tell(self, exchange: Exchange) -> None:
        """A request is over."""
        ...

    def close(self) -> None:
        """Send what has not been sent yet. May take seconds."""
        ...


def traces_to(endpoint: str | None, *, model: str) -> Traces | None:
    """Whoever sends spans to `endpoint`, None without one. Raises ConfigError for what is missing or no URL."""
    if endpoint is None:
        return None
    try:
        from sapwood.observe.traces import SpanSender
    except ImportError as error:
        raise ConfigError(
            f"--otlp-traces-endpoint needs OpenTelemetry's SDK ({error}): pip install 'sapwood[otel]', or leave it out."
        ) from error
    return SpanSender(endpoint, model=model)


class Observer:
    """Watches requests from their arrival to their end. With `log_requests` each has a line in the log."""

    def __init__(self, metrics: Metrics, *, log_requests: bool = False, traces: Traces | None = None) -> None:
        self.metrics = metrics
        self._log_requests = log_requests
        self._traces = traces

    @contextlib.contextmanager
    def watching(self, exchange: Exchange) -> Iterator[None]:
        """For as long as a request is served."""
        with within(exchange):
            try:
                yield
            finally:
                exchange.ended = perf_counter()
                self._tell(exchange)

    def _tell(self, exchange: Exchange) -> None:
        self.metrics.request(exchange.endpoint, exchange.status, exchange.seconds, key=exchange.key)
        if self._traces is not None:
            self._traces.tell(exchange)
        if self._log_requests:
            told = exchange.told()
            log.info("%s", _sentence(told), extra={"fields": told, "request_id": exchange.id})

    def close(self) -> None:
        """See `Traces.close`."""
        if self._traces is not None:
            self._traces.close()


def _sentence(told: Mapping[str, Any]) -> str:
    """What is told of a request, for people."""
    words = [f"{told['method']} {told['path']} {told['status']} {told['seconds']:.3f} s"]
    if "key" in told:
        words.append(f"key {told['key']}")
    if "generations" in told:
        words.append(f"prompt {told['prompt_tokens']} ({told['cached_tokens']} cached)")
        words.append(f"output {told['output_tokens']}")
        if "first_token_seconds" in told:
            words.append(f"first token {told['first_token_seconds']:.3f} s")
        words.append(told["finish"])
    return ", ".join(words)
