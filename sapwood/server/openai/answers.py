"""What a chat answers, read from outputs: text, thoughts and calls, whole or as they come."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.server.front import Front
from sapwood.server.generation import Choice, News
from sapwood.server.openai.tools import Toolbox
from sapwood.text.model import Thoughts
from sapwood.text.parsers import Event, Parser, Said, gather

_ALPHABET = string.ascii_letters + string.digits


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: str = "function"


class Answer(msgspec.Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(msgspec.Struct):
    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class AnswerDelta(msgspec.Struct):
    content: str | UnsetType | None = UNSET
    role: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class Reader:
    """Reads one choice. Give it the choice once as a whole, or its news one by one.

    `past` is how many calls the conversation has before it: some models number them through.
    """

    def __init__(self, front: Front, toolbox: Toolbox | None, thoughts: Thoughts, *, past: int) -> None:
        schemas = toolbox.schemas if toolbox is not None else {}
        self._front = front
        self._open = thoughts == "open"
        self._parser = Parser(
            front.text.dialect,
            tools=schemas,
            thinking=self._open,
            most_calls=None if toolbox is None or toolbox.many else 1,
        )
        self._past = past
        self._called = False

    def whole(self, choice: Choice) -> tuple[Answer, str | None]:
        """The message, and why it ended."""
        said = self.said(choice.text)
        calls = [
            ToolCall(self._id(call.name, number), CalledFunction(call.name, call.arguments))
            for number, call in enumerate(said.calls)
        ]
        self._called = bool(calls)
        answer = Answer(
            said.text or (None if calls else ""),
            reasoning_content=said.thought or UNSET,
            tool_calls=calls or UNSET,
        )
        return answer, self._end(choice)

    def said(self, text: str) -> Said:
        """A whole output taken apart."""
        return gather([*self._parser.push(text), *self._parser.finish()])

    def deltas(self, news: News) -> tuple[list[AnswerDelta], str | None]:
        """What some news add to the message, and why it ended if it has."""
        events = self._parser.push(news.text)
        if news.choice.finish is None:
            return list(self._deltas(events)), None
        deltas = list(self._deltas([*events, *self._parser.finish()]))
        return deltas, self._end(news.choice)

    def _deltas(self, events: list[Event]) -> Iterator[AnswerDelta]:
        for kind, text, number in events:
            match kind:
                case "text":
                    yield AnswerDelta(content=text)
                case "thought":
                    yield AnswerDelta(reasoning_content=text)
                case "call":
                    self._called = True
                    function = FunctionDelta(text, "")
                    yield AnswerDelta(tool_calls=[CallDelta(number, self._id(text, number), "function", function)])
                case "arguments":
                    yield AnswerDelta(tool_calls=[CallDelta(number, function=FunctionDelta(arguments=text))])

    def _end(self, choice: Choice) -> str | None:
        """Count what was read, once the output has ended."""
        if self._front.text.dialect.reasoning is not None:
            choice.num_thought_tokens = self._front.text.num_thought_tokens(choice.tokens, open=self._open)
        broken = self._parser.num_malformed
        tally = self._front.metrics.tool_calls
        tally.labels("read").inc(max(self._parser.num_calls - broken, 0))
        tally.labels("malformed").inc(broken)
        stopped_within = isinstance(choice.stop, str) and self._parser.cut  # nobody should run such a call
        return "tool_calls" if self._called and choice.finish == "stop" and not stopped_within else choice.finish

    def _id(self, name: str, number: int) -> str:
        tools = self._front.text.dialect.tools
        match tools.ids if tools is not None else "long":
            case "numbered":
                return f"functions.{name}:{self._past + number}"
            case "short":
                return "".join(secrets.choice(_ALPHABET) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"
