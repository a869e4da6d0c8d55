"""What a chat answers, read from outputs: text, thoughts and calls, whole or as they come."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.server.conversation import CallIds, Turn
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News
from sapwood.text.parsers import Event


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


class Speaker:
    """Words what the choices of a turn say as OpenAI does: each as a whole, or its news one by one."""

    def __init__(self, front: Front, turn: Turn, *, offered: bool) -> None:
        self._turn = turn
        self._id = CallIds(front, turn)
        self._no_thought = UNSET if front.text.dialect.reasoning is None else None
        self._begin = None if offered else ""  # of the text, where there were tools to call instead

    def whole(self, choice: Choice) -> tuple[Answer, str | None]:
        """The message, and why it ended."""
        said = self._turn.said(choice)
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

    def first(self) -> AnswerDelta:
        """What a streamed message begins with."""
        return AnswerDelta(content=self._begin, role="assistant", reasoning_content=self._no_thought)

    def deltas(self, news: News) -> tuple[list[AnswerDelta], str | None]:
        """What some news add to the message, and why it ended if it has."""
        return list(self._deltas(self._turn.events(news))), self._finish(news.choice)

    def _finish(self, choice: Choice) -> str | None:
        return "tool_calls" if self._turn.to_call(choice) else choice.finish

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
