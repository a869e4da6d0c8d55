"""What is told of a request when it is over."""

from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry

from sapwood.base.sampling import SamplingParams
from sapwood.observe.exchange import Exchange, current
from sapwood.observe.metrics import Metrics
from sapwood.observe.observer import Observer
from tests.observe.test_metrics import Watched


class Listener:
    def __init__(self) -> None:
        self.heard: list[Exchange] = []

    def tell(self, exchange: Exchange) -> None:
        self.heard.append(exchange)

    def close(self) -> None:
        self.heard.clear()


def make(**options: object) -> Observer:
    metrics = Metrics(CollectorRegistry(), model="m", engine=Watched())
    return Observer(metrics, **options)  # type: ignore[arg-type]


def exchange() -> Exchange:
    return Exchange("id-7", "POST", "/v1/models/a", "/v1/models/{name}")


def generate(metrics: Metrics, reason: str) -> None:
    meter = metrics.meter(10, SamplingParams())
    if reason == "stop":
        meter.tokens(3, waited=0.1)
    meter.end(reason, num_cached_tokens=4)


def test_generations_are_those_of_the_request_that_asks_for_them() -> None:
    observer, one, other = make(), exchange(), exchange()

    async def serve(mine: Exchange, reasons: list[str]) -> None:
        with observer.watching(mine):
            for reason in reasons:
                await asyncio.sleep(0)
                await asyncio.create_task(asyncio.to_thread(generate, observer.metrics, reason))

    async def both() -> None:
        await asyncio.gather(serve(one, ["stop", "stop", "abort"]), serve(other, ["error"]))

    asyncio.run(both())
    assert [meter.reason for meter in one.meters] == ["stop", "stop", "abort"]
    assert [meter.reason for meter in other.meters] == ["error"]
    assert current() is None


def test_a_request_s_line(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    observer, mine = make(log_requests=True, traces=listener), exchange()
    with caplog.at_level(logging.INFO, "sapwood"), observer.watching(mine):
        mine.status, mine.key = 200, "alice"
        for reason in ("stop", "stop", "length"):
            generate(observer.metrics, reason)
    (record,) = caplog.records
    told = record.fields  # type: ignore[attr-defined]
    line = record.getMessage()
    assert line.startswith("POST /v1/models/a 200 ") and "key alice" in line
    assert "prompt 30 (12 cached), output 6, first token " in line and line.endswith(", stop,length")
    assert 0 <= told.pop("first_token_seconds") <= told.pop("seconds")
    assert told == {
        "method": "POST",
        "path": "/v1/models/a",
        "route": "/v1/models/{name}",
        "status": 200,
        "key": "alice",
        "generations": 3,
        "prompt_tokens": 30,
        "cached_tokens": 12,
        "output_tokens": 6,
        "finish": "stop,length",
    }
    assert record.request_id == "id-7"  # type: ignore[attr-defined]
    assert listener.heard == [mine]
    observer.close()
    assert listener.heard == []


def test_a_path_is_one_line_and_not_long(caplog: pytest.LogCaptureFixture) -> None:
    path = "/v1/größe\n12:00:00 INFO all is well\x1b[31m% \u2028" + "a" * 999
    with (
        caplog.at_level(logging.INFO, "sapwood"),
        make(log_requests=True).watching(Exchange("id", "GET", path, "other")),
    ):
        pass
    (line,) = caplog.messages
    assert line.startswith("GET /v1/größe\\n12:00:00 INFO all is well\\x1b[31m% \\u2028aaa") and len(line) < 300
    assert "a... 499 " in line


def test_no_line_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sapwood"), make().watching(exchange()):
        pass
    assert not caplog.records


def test_what_fails_is_told_too() -> None:
    listener = Listener()
    observer, mine = make(traces=listener), exchange()
    with pytest.raises(RuntimeError), observer.watching(mine):
        raise RuntimeError("in the middle")
    assert listener.heard == [mine] and mine.ended >= mine.began
    value = observer.metrics.registry.get_sample_value
    assert value("sapwood_requests_total", {"endpoint": "/v1/models/{name}", "status": "499"}) == 1


def test_what_a_request_leaves_behind_is_not_its_any_more() -> None:
    observer, mine = make(), exchange()

    async def serve() -> None:
        late = asyncio.Event()

        async def linger() -> None:
            await late.wait()
            generate(observer.metrics, "stop")

        with observer.watching(mine):
            task = asyncio.create_task(linger())
            await asyncio.sleep(0)
        late.set()
        await task

    asyncio.run(serve())
    assert mine.meters == []
