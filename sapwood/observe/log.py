"""One place that decides how log lines look, in every process. Prompts, outputs and keys never go into them."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from sapwood.observe.exchange import current

_BESIDE = ("uvicorn.error", "opentelemetry")  # libraries whose warnings are about our own work


class _SapwoodHandler(logging.StreamHandler[TextIO]):
    """Its own type, so that setting up twice replaces it instead of doubling every line."""


def set_up_logging(
    level: str = "info",
    *,
    format: str = "text",
    process: str = "server",
    whole: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Write the lines of `sapwood.*` from `level` on, and the warnings of libraries that serve or watch, to `stream` (stderr).

    Lines say from which `process` they are, and whatever concerns a request bears its id. Other libraries' loggers are left
    as they are, but where the `whole` process is ours. May be called again: the last call counts.
    """
    handler = _SapwoodHandler(stream or sys.stderr)
    handler.setFormatter(_Json(process) if format == "json" else _Text(process))
    leave_logging()
    thresholds = {"": level.upper()} if whole else {"sapwood": level.upper()} | dict.fromkeys(_BESIDE, "WARNING")
    for name, threshold in thresholds.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(threshold)
        logger.propagate = False


def leave_logging() -> None:
    """Undo what `set_up_logging` did: the loggers are as Python has them at first."""
    for name in ("", "sapwood", *_BESIDE):
        logger = logging.getLogger(name)
        if any(isinstance(h, _SapwoodHandler) for h in logger.handlers):
            logger.handlers = [h for h in logger.handlers if not isinstance(h, _SapwoodHandler)]
            logger.setLevel("NOTSET" if name else "WARNING")
            logger.propagate = True


def _request_id(record: logging.LogRecord) -> str:
    """Of the request that a line is about: as it says itself, or else the one that is being served."""
    told: str | None = getattr(record, "request_id", None)
    if told is None and (exchange := current()) is not None:
        return exchange.id
    return told or ""


class _Text(logging.Formatter):
    """Lines for people."""

    def __init__(self, process: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._process = f"{process}[{os.getpid()}]"

    def usesTime(self) -> bool:
        return True

    def formatMessage(self, record: logging.LogRecord) -> str:
        id = _request_id(record)
        return (
            f"{record.asctime}.{int(record.msecs):03d} {record.levelname:<7} {self._process} {record.name}: "
            f"{record.message}{f' [{id}]' if id else ''}"
        )


class _Json(logging.Formatter):
    """One object a line, for programs. What a line has to tell in numbers stands beside its message."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if id := _request_id(record):
            told["request_id"] = id
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(told | getattr(record, "fields", {})).decode()
