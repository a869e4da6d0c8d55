"""Spans of requests, as a collector of OpenTelemetry gets them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from sapwood.base.errors import ConfigError, GenerationFailed
from sapwood.config import Config
from sapwood.observe.observer import traces_to
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs sapwood[otel]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs sapwood[otel]")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector:
    """Takes what is posted to /v1/traces."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
                collector.requests.append(service.ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Any]:
        scopes = [scope for told in self.requests for place in told.resource_spans for scope in place.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def app(collector: Collector, engine: FakeEngine, text: TextModel) -> Starlette:
    return create_app(engine, text, Config(), MODEL, traces=traces_to(collector.url, model=MODEL))


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes of a span as Python has them."""

    def value(told: Any) -> Any:
        kind = told.WhichOneof("value")
        return [value(one) for one in told.array_value.values] if kind == "array_value" else getattr(told, kind)

    return {one.key: value(one.value) for one in attributes}


async def spans_of(app: Starlette, collector: Collector, *bodies: dict[str, Any], **headers: str) -> list[Any]:
    """The spans of some completions."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        for body in bodies:
            await http.post("/v1/completions", json=body, headers=headers)
        await http.get("/health")
    await app.state.front.close()
    return collector.spans()


async def test_a_request_is_a_span_with_its_parts(app: Starlette, collector: Collector, engine: FakeEngine) -> None:
    engine.cached = 2
    body = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0.5, "seed": 9, "stream": True}
    spans = await spans_of(app, collector, body, **{"x-request-id": "id-1"})
    (root,) = (span for span in spans if not span.parent_span_id)
    parts = {span.name: span for span in spans if span.parent_span_id}
    assert root.name == f"text_completion {MODEL}" and root.kind == root.SPAN_KIND_SERVER
    told = plain(root.attributes)
    assert told.pop("gen_ai.latency.e2e") >= told.pop("gen_ai.latency.time_to_first_token") > 0
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "sapwood.request.id": "id-1",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 9,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.output_tokens": 4,
    }
    assert {name: told[name] for name in expected} == expected
    assert list(parts) == ["queue", "prefill", "decode"]
    assert all(part.parent_span_id == root.span_id and part.trace_id == root.trace_id for part in parts.values())
    times = [(part.start_time_unix_nano, part.end_time_unix_nano) for part in parts.values()]
    edges = [root.start_time_unix_nano, *(time for pair in times for time in pair), root.end_time_unix_nano]
    assert edges == sorted(edges) and times[0][1] == times[1][0] and times[1][1] == times[2][0]
    (resource,) = {str(plain(place.resource.attributes)) for one in collector.requests for place in one.resource_spans}
    assert "'service.name': 'sapwood'" in resource


async def test_a_client_s_trace_goes_on(app: Starlette, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "congo=t61"}
    spans = await spans_of(app, collector, {"prompt": [5], "max_tokens": 1, "n": 2}, **headers)
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    (root,) = (span for span in spans if span.parent_span_id.hex() == PARENT)
    assert root.trace_state == "congo=t61"
    choices = [plain(span.attributes)["sapwood.choice"] for span in spans if span is not root]
    assert sorted(choices) == [0, 0, 0, 1, 1, 1]


async def test_a_client_that_wants_no_trace_has_none(app: Starlette, collector: Collector) -> None:
    assert not await spans_of(app, collector, {"prompt": [5]}, traceparent=f"00-{TRACE}-{PARENT}-00")


@pytest.mark.parametrize("traceparent", ["nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01-9"])
async def test_a_broken_trace_is_none(app: Starlette, collector: Collector, traceparent: str) -> None:
    (root, *_) = await spans_of(app, collector, {"prompt": []}, traceparent=traceparent)
    assert not root.parent_span_id and root.name == "POST /v1/completions"
    assert plain(root.attributes)["http.response.status_code"] == 400
    assert root.status.code == root.status.STATUS_CODE_UNSET  # the client's error, not ours


async def test_what_fails_is_marked(app: Starlette, collector: Collector, engine: FakeEngine) -> None:
    engine.failure = GenerationFailed("the device caught fire")
    spans = await spans_of(app, collector, {"prompt": [5]})
    (root,) = (span for span in spans if not span.parent_span_id)
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert plain(root.attributes)["gen_ai.response.finish_reasons"] == ["error"]
    assert [span.name for span in spans if span is not root] == ["queue"]


async def test_nobody_waits_for_a_collector_that_is_not_there(engine: FakeEngine, text: TextModel) -> None:
    from sapwood.observe.traces import SpanSender

    sender = SpanSender("http://127.0.0.1:9", model=MODEL, seconds=0.2)
    app = create_app(engine, text, Config(), MODEL, traces=sender)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        assert (await http.post("/v1/completions", json={"prompt": [5]})).status_code == 200
    await app.state.front.close()


@pytest.mark.parametrize("endpoint", ["localhost:4317", "grpc://localhost:4317", "http://", ""])
def test_what_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-traces-endpoint"):
        traces_to(endpoint, model=MODEL)
