"""What Ollama's routes answer: lines of JSON, one for each piece of news, or one for all."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.base.plan import TokenLogprobs
from sapwood.grammar.schema import Finding
from sapwood.server.front import Front
from sapwood.server.functions import arguments_of
from sapwood.server.generation import Choice, News
from sapwood.server.logprobs import alternatives, finite
from sapwood.server.sse import Script, quoted
from sapwood.text import TextModel
from sapwood.text.parsers import Event

_encode = msgspec.json.Encoder().encode


class ToldFunction(msgspec.Struct):
    index: int
    name: str
    arguments: dict[str, Any]


class ToldCall(msgspec.Struct):
    id: str
    function: ToldFunction


class ToldMessage(msgspec.Struct):
    role: str
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToldCall] | UnsetType = UNSET


class Ranked(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ToldLogprob(Ranked):
    top_logprobs: list[Ranked] | UnsetType = UNSET


class Line(msgspec.Struct, kw_only=True):
    """What chats and prompts have in common. Durations are in nanoseconds and stand, with the counts, in the last line.

    `schema_check` says whether an output matches that a grammar could not hold to its whole schema.
    """

    model: str
    created_at: str
    done: bool = False
    done_reason: Literal["stop", "length", "load"] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[ToldLogprob] | UnsetType = UNSET
    schema_check: Finding | UnsetType = UNSET


class ChatLine(Line, kw_only=True):
    message: ToldMessage


class GenerateLine(Line, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET


class Said(msgspec.Struct):
    """What a line says."""

    text: str = ""
    thought: str = ""
    calls: list[ToldCall] = []

    def __bool__(self) -> bool:
        return bool(self.text or self.thought or self.calls)


class Wording:
    """Makes the lines of one answer."""

    def __init__(self, front: Front, *, chats: bool) -> None:
        self._name, self._chats = front.answering, chats
        self._created = datetime.now(UTC).isoformat().replace("+00:00", "Z")

    def line(self, said: Said) -> Line:
        thinking = said.thought or UNSET
        if self._chats:
            message = ToldMessage("assistant", said.text, thinking, said.calls or UNSET)
            return ChatLine(model=self._name, created_at=self._created, message=message)
        return GenerateLine(model=self._name, created_at=self._created, response=said.text, thinking=thinking)

    def load(self) -> Line:
        """What is answered where nothing is asked but that the model is there."""
        line = self.line(Said())
        line.done, line.done_reason = True, "load"
        return line


class Speaker:
    """Words a choice. `events` reads its news, `finding` checks it when it is complete, `id` makes the ids of its calls.

    `plain`: all that it says is text.
    """

    def __init__(
        self,
        front: Front,
        wording: Wording,
        *,
        events: Callable[[News], list[Event]],
        finding: Callable[[Choice], Finding | None],
        id: Callable[[str, int], str],
        begun: float,
        plain: bool,
    ) -> None:
        self.wording, self.plain = wording, plain
        self._text, self._events, self._finding, self._id = front.text, events, finding, id
        self._begun, self._first = begun, 0.0
        self._call: tuple[str, int] | None = None  # the one that is being written: its name and number
        self._written: list[str] = []

    def note(self, news: Sequence[News]) -> None:
        """The first tokens are there."""
        self._first = self._first or perf_counter()

    def said(self, news: News) -> Said:
        """What some news say; calls when they are whole."""
        said = Said(calls=[])
        for kind, text, number in self._events(news):
            if kind != "arguments":
                said.calls += self._called()
            match kind:
                case "text":
                    said.text += text
                case "thought":
                    said.thought += text
                case "call":
                    self._call = text, number
                case "arguments":
                    self._written.append(text)
        if news.choice.finish is not None:
            said.calls += self._called()
        return said

    def _called(self) -> Iterator[ToldCall]:
        if self._call is not None:
            name, number = self._call
            arguments = arguments_of("".join(self._written))
            yield ToldCall(self._id(name, number), ToldFunction(number, name, arguments))
        self._call = None
        self._written.clear()

    def end(self, line: Line, choice: Choice) -> Line:
        """`line` as the last."""
        now = perf_counter()
        line.done, line.done_reason = True, "length" if choice.finish == "length" else "stop"
        line.total_duration, line.load_duration = _ns(now - self._begun), 0
        line.prompt_eval_count, line.prompt_eval_duration = len(choice.prompt.tokens), _ns(self._first - self._begun)
        line.eval_count, line.eval_duration = len(choice.tokens), _ns(now - self._first)
        line.schema_check = self._finding(choice) or UNSET
        return line

    def whole(self, choice: Choice) -> Line:
        """All of a choice that has ended."""
        news = News(choice, choice.text, choice.tokens, choice.logprobs, first=True)
        line = self.end(self.wording.line(self.said(news)), choice)
        line.logprobs = self.logprobs(news)
        return line

    def logprobs(self, news: News) -> list[ToldLogprob] | UnsetType:
        params = news.choice.params
        if params.logprobs is None:
            return UNSET
        return [_told(self._text, entry, top=bool(params.logprobs)) for entry in news.logprobs]


class Lines(Script):
    """An answer as lines. Those with nothing but text differ in it only, so the rest of them is encoded once."""

    media = "application/x-ndjson"

    def __init__(self, speaker: Speaker, *, logprobs: bool) -> None:
        self._speaker, self._plain = speaker, speaker.plain and not logprobs
        mark = uuid.uuid4().hex
        self._before, self._after = _line(speaker.wording.line(Said(mark))).split(_encode(mark))

    def frames(self, news: list[News]) -> bytes:
        self._speaker.note(news)
        parts: list[bytes] = []
        for one in news:
            if one.choice.finish is not None or not self._plain:
                parts += self._parts(one)
            elif one.text:  # nearly all news of a plain answer
                parts += self._before, quoted(one.text), self._after
        return b"".join(parts)

    def last(self) -> bytes:
        return b""

    def failed(self, error: bytes) -> bytes:
        return error + b"\n"

    def _parts(self, news: News) -> Iterator[bytes]:
        speaker, said, logprobs = self._speaker, self._speaker.said(news), self._speaker.logprobs(news)
        if logprobs or said.thought or said.calls:
            line = speaker.wording.line(said)
            line.logprobs = logprobs
            yield _line(line)
        elif said.text:
            yield self._before + quoted(said.text) + self._after
        if news.choice.finish is not None:
            yield _line(speaker.end(speaker.wording.line(Said()), news.choice))


def _line(line: Line) -> bytes:
    return _encode(line) + b"\n"


def _ns(seconds: float) -> int:
    return max(int(seconds * 1e9), 0)


def _told(text: TextModel, entry: TokenLogprobs, *, top: bool) -> ToldLogprob:
    def ranked(id: int, logprob: float) -> Ranked:
        return Ranked(text.token_text(id), finite(logprob), list(text.token_bytes(id)))

    told = ToldLogprob(text.token_text(entry.token), finite(entry.logprob), list(text.token_bytes(entry.token)))
    if top:
        told.top_logprobs = [ranked(id, value) for id, value in alternatives(entry, ())]
    return told
