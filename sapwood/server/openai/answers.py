"""What a chat answers, read from outputs: text, thoughts and calls, whole or as they come."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.server.conversation import Reading
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News
from sapwood.server.openai.tools import Toolbox
from sapwood.text.model import Thoughts
from sapwood.text.parsers import Event, Said, gather

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
    reasoning_content: str | UnsetType | None = UNSET
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
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class Reader:
    """Words what one choice says as OpenAI does. Give it the choice once as a whole, or its news one by one.

    `past` is how many calls the conversation has before it: some models number them through.
    """

    def __init__(self, front: Front, toolbox: Toolbox | None, thoughts: Thoughts, *, split: bool, past: int) -> None:
        self._front = front
        self._no_thought = UNSET if front.text.dialect.reasoning is None else None
        self._reading = Reading(
            front,
            {} if toolbox is None else toolbox.schemas,
            most_calls=None if toolbox is None or toolbox.many else 1,
            thoughts=thoughts,
            split=split,
        )
        self._past = past

    def whole(self, choice: Choice) -> tuple[Answer, str | None]:
        """The message, and why it ended."""
        said = gather(self._reading.events(choice, choice.text))
        calls = [
            ToolCall(self._id(call.name, number), CalledFunction(call.name, call.arguments))
            for number, call in enumerate(said.calls)
        ]
        answer = Answer(
            said.text or (None if calls else ""),
            reasoning_content=said.thought or self._no_thought,
            tool_calls=calls or UNSET,
        )
        return answer, self._finish(choice)

    def said(self, text: str) -> Said:
        """A whole output taken apart, to be looked at and not to be told. Give it nothing else then."""
        return self._reading.said(text)

    def deltas(self, news: News) -> tuple[list[AnswerDelta], str | None]:
        """What some news add to the message, and why it ended if it has."""
        return list(self._deltas(self._reading.events(news.choice, news.text))), self._finish(news.choice)

    def _finish(self, choice: Choice) -> str | None:
        return "tool_calls" if self._reading.to_call else choice.finish

    def _deltas(self, events: list[Event]) -> Iterator[AnswerDelta]:
        for kind, text, number in events:
            match kind:
                case "text":
                    yield AnswerDelta(content=text)
                case "thought":
                    yield AnswerDelta(reasoning_content=text)
                case "call":
                    function = FunctionDelta(text, "")
                    yield AnswerDelta(tool_calls=[CallDelta(number, self._id(text, number), "function", function)])
                case "arguments":
                    yield AnswerDelta(tool_calls=[CallDelta(number, function=FunctionDelta(arguments=text))])

    def _id(self, name: str, number: int) -> str:
        tools = self._front.text.dialect.tools
        match tools.ids if tools is not None else "long":
            case "numbered":
                return f"functions.{name}:{self._past + number}"
            case "short":
                return "".join(secrets.choice(_ALPHABET) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"
