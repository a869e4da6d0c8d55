"""The lines of a batch: requests in, results out, wherever they come from."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

MOST_LINES = 50_000

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


class Line(msgspec.Struct, kw_only=True):
    """One request. `number` counts from 1, blank lines too."""

    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"
    number: int = 0


class Fault(msgspec.Struct):
    """What is wrong with a line, or with the batch."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineAnswer(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct):
    code: str
    message: str


class LineResult(msgspec.Struct, kw_only=True):
    """A line of an output file: an answer, whatever its status, or why there is none."""

    id: str
    custom_id: str
    response: LineAnswer | None = None
    error: LineError | None = None

    @property
    def good(self) -> bool:
        return self.response is not None and 200 <= self.response.status_code < 300


def result_of(line: Line, response: LineAnswer | None = None, error: LineError | None = None) -> LineResult:
    return LineResult(id=f"batch_req_{secrets.token_hex(16)}", custom_id=line.custom_id, response=response, error=error)


def read_lines(content: bytes, endpoints: Sequence[str]) -> tuple[list[Line], list[Fault]]:
    """All requests of a file, and all that is wrong with it; where anything is, none should run."""
    lines: list[Line] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    for number, raw in _not_blank(content):
        if len(lines) == MOST_LINES:
            faults.append(Fault("too_many_lines", f"A batch has at most {MOST_LINES} requests.", number))
            break
        line = _read(raw, number, endpoints)
        if isinstance(line, Line) and line.custom_id in seen:
            line = Fault("duplicate_custom_id", f"custom_id {line.custom_id!r} is given twice.", number, "custom_id")
        if isinstance(line, Fault):
            faults.append(line)
        else:
            seen.add(line.custom_id)
            lines.append(line)
    if not lines and not faults:
        faults.append(Fault("empty_file", "The file has no requests."))
    return lines, faults


def _not_blank(content: bytes) -> Iterator[tuple[int, bytes]]:
    return ((number, raw) for number, raw in enumerate(content.split(b"\n"), 1) if raw.strip())


def _read(raw: bytes, number: int, endpoints: Sequence[str]) -> Line | Fault:
    try:
        given = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Fault("invalid_json_line", f"The line is not JSON: {error}.", number)
    return line_of(given, number, endpoints)


def line_of(given: Any, number: int, endpoints: Sequence[str]) -> Line | Fault:
    """A line's request, or what is wrong with it."""
    try:
        line = msgspec.convert(given, Line)
    except msgspec.ValidationError as error:
        return Fault("invalid_line", f"{error}.", number)
    line.number = number
    if line.method != "POST":
        return Fault("invalid_method", f"method must be POST, got {line.method!r}.", number, "method")
    if line.url not in endpoints:
        return Fault("mismatched_endpoint", f"url must be {' or '.join(endpoints)}, got {line.url!r}.", number, "url")
    for name in ("stream", "background"):
        if line.body.get(name):
            return Fault("invalid_line", f"body.{name} is not for batches; leave it out.", number, f"body.{name}")
    return line
