from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from sapwood.observe.log import set_up_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("sapwood", "uvicorn.error")]
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
    assert line.endswith("WARNING sapwood.server: port 8000")


def test_twice_does_not_double_lines() -> None:
    stream = io.StringIO()
    set_up_logging("info", stream=io.StringIO())
    set_up_logging("debug", stream=stream)
    logging.getLogger("sapwood").debug("once")
    assert stream.getvalue().count("once") == 1


def test_other_loggers_are_left_alone() -> None:
    before = (logging.getLogger().handlers[:], logging.getLogger().level)
    set_up_logging("debug", stream=io.StringIO())
    assert (logging.getLogger().handlers, logging.getLogger().level) == before
