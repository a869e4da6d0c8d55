"""OpenTelemetry's traces: a span for each request that posts something, with one for each part of its generations.

Spans are made when a request is over, from the times that were noted anyhow, and sent by a thread of the SDK's. Imported only
where traces are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter, time_ns
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sapwood import __version__
from sapwood.base.errors import ConfigError
from sapwood.observe.exchange import Exchange
from sapwood.observe.metrics import Meter

_CHATS = ("chat", "messages", "responses")  # in the routes of those that are conversations
_FAILED = 500


class SpanSender:
    """Sends the spans of a server to `endpoint`, as OTLP over HTTP."""

    def __init__(self, endpoint: str, *, model: str, seconds: float = 5.0) -> None:
        """`seconds` is what a batch of spans may take, the last one included. Raises ConfigError for what is no URL that spans can be sent to."""
        exporter = OTLPSpanExporter(endpoint=_url(endpoint), timeout=seconds)
        resource = Resource.create({SERVICE_NAME: "sapwood", "service.version": __version__})
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sapwood", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._model = model

    def tell(self, exchange: Exchange) -> None:
        """See `Traces.tell`."""
        if exchange.method != "POST":
            return
        zero = time_ns() - int(perf_counter() * 1e9)
        operation = _operation(exchange.endpoint)
        span = self._tracer.start_span(
            f"{operation} {self._model}" if exchange.meters else f"POST {exchange.endpoint}",
            context=self._extract(exchange.headers, Context()),
            kind=SpanKind.SERVER,
            attributes=_of_request(exchange) | (_of_generations(exchange, operation, self._model)),
            start_time=zero + int(exchange.began * 1e9),
        )
        if exchange.status >= _FAILED or any(meter.reason == "error" for meter in exchange.meters):
            span.set_status(StatusCode.ERROR)
        within = set_span_in_context(span, Context())
        for index, meter in enumerate(exchange.meters):
            for name, start, end in _parts(meter, exchange.ended):
                part = self._tracer.start_span(
                    name,
                    context=within,
                    attributes={"sapwood.choice": index},
                    start_time=zero + int(start * 1e9),
                )
                part.end(zero + int(end * 1e9))
        span.end(zero + int(exchange.ended * 1e9))

    def close(self) -> None:
        """See `Traces.close`."""
        self._provider.shutdown()


def _url(endpoint: str) -> str:
    """Where to post. A URL without a path is a collector's, which takes traces at /v1/traces."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"--otlp-traces-endpoint takes a URL of OTLP over HTTP, such as http://localhost:4318/v1/traces, got {endpoint!r}."
        )
    return endpoint if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()


def _operation(endpoint: str) -> str:
    """What OpenTelemetry's conventions call it."""
    if "embed" in endpoint:
        return "embeddings"
    return "chat" if any(word in endpoint for word in _CHATS) else "text_completion"


def _of_request(exchange: Exchange) -> dict[str, Any]:
    told = {
        "http.request.method": exchange.method,
        "http.route": exchange.endpoint,
        "http.response.status_code": exchange.status,
        "sapwood.request.id": exchange.id,
    }
    return told | ({"sapwood.key": exchange.key} if exchange.key else {})


def _of_generations(exchange: Exchange, operation: str, model: str) -> dict[str, Any]:
    """By the conventions for generative AI, and what vLLM's spans tell of latency beside these."""
    if not exchange.meters:
        return {}
    meters, params = exchange.meters, exchange.meters[0].params
    told: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "sapwood",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.choice.count": len(meters),
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.response.finish_reasons": [meter.reason for meter in meters],
        "gen_ai.usage.input_tokens": sum(meter.num_prompt_tokens for meter in meters),
        "gen_ai.usage.cache_read.input_tokens": sum(meter.num_cached_tokens for meter in meters),
        "gen_ai.usage.output_tokens": sum(meter.num_output_tokens for meter in meters),
        "gen_ai.latency.e2e": exchange.seconds,
    }
    if params.max_tokens is not None:
        told["gen_ai.request.max_tokens"] = params.max_tokens
    if params.seed is not None:
        told["gen_ai.request.seed"] = params.seed
    waits = [meter.waited for meter in meters if meter.waited >= 0]
    firsts = [meter.first for meter in meters if meter.first]
    if waits:
        told["gen_ai.latency.time_in_queue"] = max(waits)
    if firsts:
        told["gen_ai.latency.time_to_first_token"] = min(firsts) - exchange.began
    return told


def _parts(meter: Meter, ended: float) -> Iterator[tuple[str, float, float]]:
    """Name, start and end of each part of a generation. One that has no token yet when it ends has only waited, for all that
    is known."""
    if not meter.first:
        yield "queue", meter.began, ended
        return
    started = meter.began + min(max(meter.waited, 0.0), meter.first - meter.began)
    yield "queue", meter.began, started
    yield "prefill", started, meter.first
    yield "decode", meter.first, meter.last
