from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from datetime import datetime

import pytest

from sapwood.observe.exchange import Exchange, within
from sapwood.observe.log import set_up_logging

LOGGERS = ("", "sapwood", "uvicorn.error", "opentelemetry")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    states = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, states, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_level_and_format() -> None:
    stream = io.StringIO()
    set_up_logging("warning", stream=stream)
    logging.getLogger("sapwood.server").warning("port %d", 8000)
    logging.getLogger("sapwood.server").info("not this")
    (line,) = stream.getvalue().splitlines()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d\.\d{{3}} WARNING server\[{os.getpid()}\] sapwood\.server: port 8000", line)


def test_json_lines() -> None:
    stream = io.StringIO()
    set_up_logging("info", format="json", process="engine", stream=stream)
    log = logging.getLogger("sapwood.engine.loop")
    log.info("a line\nwith %s", '"quotes"', extra={"fields": {"steps": 3}})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("a step failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "level": "info",
        "logger": "sapwood.engine.loop",
        "process": "engine",
        "pid": os.getpid(),
        "message": 'a line\nwith "quotes"',
        "steps": 3,
    }
    assert second["level"] == "error" and second["exception"].endswith("ValueError: broken")


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_concerns_a_request_bears_its_id(format: str) -> None:
    stream = io.StringIO()
    set_up_logging("info", format=format, stream=stream)
    log = logging.getLogger("sapwood.text")
    exchange = Exchange("abc-1", "POST", "/v1/completions", "/v1/completions")
    with within(exchange):
        log.info("within")
        exchange.ended = 1.0
        log.info("over")
    log.info("without")
    log.info("told", extra={"request_id": "xyz"})
    within_, over, without, told = stream.getvalue().splitlines()
    assert "abc-1" in within_ and "abc-1" not in over + without and "xyz" in told


def test_the_id_stands_before_what_an_exception_tells() -> None:
    stream = io.StringIO()
    set_up_logging("info", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("sapwood").exception("so", extra={"request_id": "xyz"})
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("sapwood: so [xyz]") and lines[-1] == "ValueError: broken"


def test_twice_does_not_double_lines() -> None:
    stream = io.StringIO()
    set_up_logging("info", stream=io.StringIO())
    set_up_logging("debug", stream=stream)
    logging.getLogger("sapwood").debug("once")
    assert stream.getvalue().count("once") == 1


def test_other_loggers_are_left_alone() -> None:
    set_up_logging("debug", stream=io.StringIO())
    before = (logging.getLogger().handlers[:], logging.getLogger().level)
    set_up_logging("debug", stream=io.StringIO())
    assert (logging.getLogger().handlers, logging.getLogger().level) == before


def test_a_whole_process() -> None:
    stream = io.StringIO()
    set_up_logging("error", stream=io.StringIO())  # the last call counts
    set_up_logging("info", process="engine", whole=True, stream=stream)
    logging.getLogger("someone.else").warning("hot")
    logging.getLogger("sapwood.engine").info("ready")
    assert [line.partition(f"engine[{os.getpid()}] ")[2] for line in stream.getvalue().splitlines()] == [
        "someone.else: hot",
        "sapwood.engine: ready",
    ]
