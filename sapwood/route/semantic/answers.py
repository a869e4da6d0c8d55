"""Answers that are given again to questions that mean the same.

Only the last thing that the user says may differ, and only in its words: all else of the request, what was said before, the settings, the
model, the path and whose request it is, has to be the same to the byte. Nothing that calls tools is kept. A stream is kept as a stream, and
comes at once when it is given again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from sapwood.route.fleet import Fleet
from sapwood.route.guests import Answered, Guest, Passing
from sapwood.route.inner import Unanswered
from sapwood.route.semantic.auto import Meant
from sapwood.route.semantic.meanings import Floats, Meanings
from sapwood.route.semantic.metrics import RuleMetrics
from sapwood.route.semantic.table import Answers
from sapwood.route.table import Alias

_PATHS = frozenset(("/v1/chat/completions", "/v1/messages", "/v1/completions", "/api/chat"))
_LONGEST = 256 << 10  # bytes of an answer that is kept
_LONGEST_QUESTION = 1000  # characters: what vectors are made of
_MINE = "answers"
_END = 1024  # bytes in which the end of a stream is looked for
_LAST_OF_STREAMS = {
    "text/event-stream": (b"data: [DONE]", b'"type":"message_stop"', b'"type": "message_stop"'),
    "application/x-ndjson": (b'"done":true', b'"done": true'),
}
"""What stands at the end of a stream that was not cut off, by its type."""


class _Place(NamedTuple):
    """What is the same in requests that may share an answer, and what may differ."""

    key: bytes
    text: str


@dataclass(frozen=True)
class _Kept:
    body: bytes
    content_type: str
    vector: Floats | None
    at: float

    @property
    def size(self) -> int:
        return len(self.body)


class KeptAnswers(Guest):
    """Off unless the table has [answers]; the oldest go first."""

    def __init__(
        self, fleet: Fleet, meant: Meant, metrics: RuleMetrics, clock: Callable[[], float] = monotonic
    ) -> None:
        self._fleet, self._meant, self._metrics, self._clock = fleet, meant, metrics, clock
        self._kept: OrderedDict[_Place, _Kept] = OrderedDict()
        self._by_key: dict[bytes, set[str]] = {}
        self._bytes = 0
        self._of: tuple[Answers | None, Meanings | None, Mapping[str, Alias]] = (None, None, {})

    def __len__(self) -> int:
        return len(self._kept)

    async def arrives(self, passing: Passing) -> web.Response | None:
        options = self._options()
        if options is None or passing.ask.model not in options.models or passing.ask.path not in _PATHS:
            return None
        place, of = _place(passing.ask.document, passing, options), self._of
        if place is None:
            return None
        self._forget_old(options)
        vector: Floats | None = None
        found, how, score = self._kept.get(place), "exact", 1.0
        if found is None and options.at_least < 1 and len(place.text) <= _LONGEST_QUESTION:
            try:
                vector = await self._vector(place.text)
                found, score = self._nearest(place.key, vector, options.at_least)
                how = "none" if found is None else "near"
            except Unanswered:
                how = "unknown"
        elif found is None:
            how = "none"
        self._metrics.answers.labels(how).inc()
        if found is None:
            passing.notes[_MINE], passing.copied = (place, vector, of), _LONGEST
            return None
        told = {
            **passing.told,
            "content-type": found.content_type,
            "age": str(int(self._clock() - found.at)),
            "x-sapwood-cache": f"{how}; {score:.4f}",
        }
        return web.Response(body=found.body, headers=told)

    def answered(self, passing: Passing, how: Answered) -> None:
        options, noted = self._options(), passing.notes.get(_MINE)
        if options is None or noted is None or how.status != 200 or how.body is None or len(how.body) > _LONGEST:
            return
        if not _is_whole(how.body, how.content_type):
            return
        place, vector, of = noted
        if of is not self._of:
            return  # it was asked under another table
        self._drop(place)
        self._kept[place] = _Kept(how.body, how.content_type, vector, self._clock())
        self._by_key.setdefault(place.key, set()).add(place.text)
        self._bytes += len(how.body)
        while len(self._kept) > options.most or self._bytes > options.most_bytes:
            self._drop(next(iter(self._kept)))

    def _options(self) -> Answers | None:
        """What the table says now. When that has changed, or who makes vectors, or what names stand for, nothing of before is kept."""
        table = self._fleet.table
        now = (table.answers, self._meant.now(), table.model)
        if now != self._of:
            self._kept.clear()
            self._by_key.clear()
            self._bytes, self._of = 0, now
        return now[0]

    async def _vector(self, text: str) -> Floats:
        meanings = self._meant.now()
        assert meanings is not None  # the table was checked
        return await meanings.of(text)

    def _nearest(self, key: bytes, vector: Floats, at_least: float) -> tuple[_Kept | None, float]:
        best, score = None, at_least
        for text in self._by_key.get(key, ()):
            one = self._kept[_Place(key, text)]
            if one.vector is None or one.vector.shape != vector.shape:  # another model has made it
                continue
            if (near := float(one.vector @ vector)) >= score:
                best, score = one, near
        return best, score

    def _forget_old(self, options: Answers) -> None:
        oldest = self._clock() - options.seconds
        while self._kept:
            place, one = next(iter(self._kept.items()))
            if one.at > oldest:
                return
            self._drop(place)

    def _drop(self, place: _Place) -> None:
        if (one := self._kept.pop(place, None)) is not None:
            self._bytes -= one.size
            texts = self._by_key[place.key]
            texts.discard(place.text)
            if not texts:
                del self._by_key[place.key]


def _is_whole(body: bytes, content_type: str) -> bool:
    """Whether this is an answer as it should be, and to its end; what is compressed is none."""
    if content_type in _LAST_OF_STREAMS:
        ends = any(mark in body[-_END:] for mark in _LAST_OF_STREAMS[content_type])
        return ends and b'data: {"error"' not in body and b"event: error" not in body and b'\n{"error"' not in body
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return False
    return True


def _place(body: Mapping[str, Any], passing: Passing, options: Answers) -> _Place | None:
    """Where an answer to this request would be kept; None if it is not."""
    if body.get("tools") or body.get("functions") or body.get("n") not in (None, 1) or body.get("store"):
        return None
    settings = body.get("options") if isinstance(body.get("options"), dict) else body  # Ollama's
    if not options.any_temperature and settings.get("temperature") != 0:  # type: ignore[union-attr]
        return None
    parted = _parted(body)
    if parted is None:
        return None
    rest, text = parted
    same = [passing.tenant, passing.ask.path, passing.models, rest]
    return _Place(hashlib.blake2b(msgspec.json.encode(same, order="deterministic"), digest_size=32).digest(), text)


def _parted(body: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """A request without the last thing that the user says, and that."""
    if isinstance(prompt := body.get("prompt"), str):
        return {**body, "prompt": ""}, prompt
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return None
    last = messages[-1]
    if last.get("role") != "user":
        return None
    content = last.get("content")
    if (
        isinstance(content, list)
        and len(content) == 1
        and isinstance(content[0], dict)
        and content[0].get("type") == "text"
    ):
        content = content[0].get("text")
    if not isinstance(content, str):
        return None
    return {**body, "messages": [*messages[:-1], {**last, "content": ""}]}, content
