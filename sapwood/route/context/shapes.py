"""Messages of OpenAI's chats and of Anthropic's, read and changed without a look at what does not matter here.

Both have roles and contents. OpenAI's calls are `tool_calls` of an assistant's message, answered by a message of the role `tool` each;
Anthropic's are parts (`tool_use`) of it, answered by parts (`tool_result`) of the user's next message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

Message = dict[str, Any]


class Call(NamedTuple):
    """A tool that was called, and all that tells the call from others."""

    id: str
    what: str


class Result(NamedTuple):
    """What a tool answered: its text, and whether there is anything else, such as pictures."""

    id: str
    text: str
    other: bool


def calls(message: Message) -> list[Call]:
    """The tools that a message calls."""
    found = []
    for call in _list(message.get("tool_calls")):
        function = next((given for name in ("function", "custom") if isinstance(given := call.get(name), dict)), {})
        found.append(
            Call(str(call.get("id", "")), f"{function.get('name')} {function.get('arguments', function.get('input'))}")
        )
    for part in _list(message.get("content")):
        if part.get("type") == "tool_use":
            given = msgspec.json.encode(part.get("input"), order="deterministic").decode()
            found.append(Call(str(part.get("id", "")), f"{part.get('name')} {given}"))
    return found


def results(message: Message) -> list[Result]:
    """What tools answer in a message."""
    if message.get("role") in ("tool", "function"):
        return [_result(str(message.get("tool_call_id", "")), message.get("content"))]
    parts = _list(message.get("content"))
    return [
        _result(str(part.get("tool_use_id", "")), part.get("content"))
        for part in parts
        if part.get("type") == "tool_result"
    ]


def with_results(message: Message, texts: Callable[[int], str | None]) -> Message:
    """The same message with other outputs of tools, by their order; None leaves one as it is."""
    if message.get("role") in ("tool", "function"):
        text = texts(0)
        return message if text is None else message | {"content": text}
    content, number = [], 0
    for part in message["content"]:
        if isinstance(part, dict) and part.get("type") == "tool_result":
            text, number = texts(number), number + 1
            part = part if text is None else part | {"content": text}
        content.append(part)
    return message | {"content": content}


def is_opening(message: Message) -> bool:
    """Whether it is the system's or the developer's."""
    return message.get("role") in ("system", "developer")


def starts(message: Message) -> bool:
    """Whether a history may go on from here: what answers a call may not lose it."""
    return message.get("role") in ("user", "assistant") and not results(message)


def with_note(message: Message, note: str) -> Message:
    """A message with a text behind all that it has."""
    content = message.get("content")
    if isinstance(content, list):
        return message | {"content": [*content, {"type": "text", "text": note}]}
    return message | {"content": f"{content}\n\n{note}" if content else note}


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def rendered(message: Message, shortened: Callable[[str], str]) -> str:
    """A message as a text for who sums up; what tools said is `shortened`."""
    lines = [f"[tool] {shortened(one.text)}" for one in results(message)]
    texts = [] if message.get("role") in ("tool", "function") else list(_texts(message.get("content")))
    if texts:
        lines.append(f"[{message.get('role')}] " + "\n".join(texts))
    lines += [f"[call] {shortened(call.what)}" for call in calls(message)]
    return "\n".join(lines)


def _result(id: str, content: object) -> Result:
    return Result(id, "\n".join(_texts(content)), any(part.get("type") != "text" for part in _list(content)))


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in _list(content):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            yield part["text"]


def _list(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
