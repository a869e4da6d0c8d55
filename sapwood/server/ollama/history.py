"""Ollama's messages as templates take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sapwood.base.errors import RequestError
from sapwood.server.front import Talk
from sapwood.server.ollama.protocol import GivenMessage
from sapwood.server.pictures import inline, joined


def talk_of(messages: Sequence[GivenMessage], template: dict[str, Any], *, param: str = "messages") -> Talk:
    """The conversation. A last message of the assistant is continued. Raises RequestError naming the field."""
    history = _History()
    told = [
        history.told(message, f"messages[{index}]." if param == "messages" else "")
        for index, message in enumerate(messages)
    ]
    resumes = messages[-1].role == "assistant" and not messages[-1].tool_calls
    return Talk(messages=told, continues=resumes, answers=not resumes, template=template, param=param)


class _History:
    """Calls often come without ids, and their results without saying of which: these are answered in their order."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._unanswered: list[tuple[str, str]] = []  # id and name

    def told(self, message: GivenMessage, at: str) -> dict[str, Any]:
        if message.content is None and not message.images and message.role != "assistant":
            raise RequestError(f"{at}content is missing.", param=f"{at}content")
        told: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.images:
            shown = [inline(data, f"{at}images") for data in message.images]
            told["content"] = joined(shown, message.content)
        if message.thinking:
            told["reasoning_content"] = message.thinking
        if message.tool_calls:
            told["tool_calls"] = [
                self._call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls
            ]
        if message.role == "tool":
            told |= self._answered(message)
        return told

    def _call(self, id: str | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._num_calls += 1
        id = id or f"call{self._num_calls:05}"  # nine characters, which some templates insist on
        self._unanswered.append((id, name))
        return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _answered(self, message: GivenMessage) -> dict[str, str]:
        """Which call a result is of."""
        wanted = [
            one
            for one in self._unanswered
            if message.tool_call_id in (None, one[0]) and message.tool_name in (None, one[1])
        ]
        if wanted:
            self._unanswered.remove(wanted[0])
            return {"tool_call_id": wanted[0][0], "name": wanted[0][1]}
        told = {"tool_call_id": message.tool_call_id, "name": message.tool_name}
        return {name: value for name, value in told.items() if value is not None}
