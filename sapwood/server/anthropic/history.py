"""Anthropic's messages as templates take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server.front import Talk
from sapwood.server.pictures import inline, joined, picture


class GivenBlock(msgspec.Struct, kw_only=True):
    """A block of content of any type; which fields it must have goes by `type`. `cache_control` is not looked at."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[GivenBlock] | None = None
    is_error: bool | None = None
    source: dict[str, Any] | None = None


class GivenMessage(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[GivenBlock]


def talk_of(
    messages: Sequence[GivenMessage], system: str | Sequence[GivenBlock] | None, template: dict[str, Any]
) -> Talk:
    """The conversation. A last message of the assistant is continued. Raises RequestError naming the field."""
    if not messages:
        raise RequestError("messages is empty; at least one message is needed.", param="messages")
    history = _History()
    if system:
        history.add({"role": "system", "content": _text(system, "system")})
    for index, message in enumerate(messages):
        history.take(message, f"messages[{index}].content")
    resumes = messages[-1].role == "assistant"
    if resumes and history.told[-1].get("tool_calls"):
        where = f"messages[{len(messages) - 1}]"
        raise RequestError(f"{where}: calls cannot be continued; send their tool_result blocks.", param=where)
    return Talk(messages=history.told, continues=resumes, answers=not resumes, template=template)


class _History:
    """What has been said, as templates take it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # of the tools that were called, by the call's id

    def take(self, message: GivenMessage, where: str) -> None:
        content = message.content
        blocks = [GivenBlock(type="text", text=content)] if isinstance(content, str) else content
        match message.role:
            case "user":
                for part in self._asked(blocks, where):
                    self.add(part)
            case "assistant":
                self.add(self._answered(blocks, where))
            case "system":
                self.add({"role": "system", "content": _text(blocks, where)})

    def add(self, part: dict[str, Any]) -> None:
        """Messages of one role that follow each other are one turn; results of tools are each their own."""
        last = self.told[-1] if self.told else None
        if last is None or part["role"] == "tool" or last["role"] != part["role"]:
            self.told.append(part)
            return
        for field in ("content", "reasoning_content"):
            if both := joined(last.get(field), part.get(field)):
                last[field] = both
        if calls := [*last.get("tool_calls", ()), *part.get("tool_calls", ())]:
            last["tool_calls"] = calls

    def _asked(self, blocks: Sequence[GivenBlock], where: str) -> Iterator[dict[str, Any]]:
        """What a user says, in order: results of tools, and text."""
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            if block.type == "image":
                yield {"role": "user", "content": [_picture(block, at)]}
                continue
            if block.type != "tool_result":
                yield {"role": "user", "content": _text_of(block, at)}
                continue
            shown = _result(block.content or "", f"{at}.content")
            call = _given(block, "tool_use_id", at)
            told = {
                "role": "tool",
                "tool_call_id": call,
                "content": joined("Error:", shown) if block.is_error else shown,
            }
            if block.is_error and isinstance(shown, str):
                told["content"] = f"Error: {shown}"
            yield told | ({"name": self._names[call]} if call in self._names else {})

    def _answered(self, blocks: Sequence[GivenBlock], where: str) -> dict[str, Any]:
        """What the assistant said: thoughts, text and calls."""
        texts, thoughts, calls = [], [], []
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            match block.type:
                case "thinking":
                    thoughts.append(_given(block, "thinking", at))
                case "redacted_thinking":
                    pass  # nobody but its writer can read it
                case "tool_use":
                    id, name = _given(block, "id", at), _given(block, "name", at)
                    function = {"name": name, "arguments": _given(block, "input", at)}
                    calls.append({"id": id, "type": "function", "function": function})
                    self._names[id] = name
                case _:
                    texts.append(_text_of(block, at))
        message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
        if any(thoughts):
            message["reasoning_content"] = "\n".join(filter(None, thoughts))
        if calls:
            message["tool_calls"] = calls
        return message


def _picture(block: GivenBlock, at: str) -> dict[str, Any]:
    source = block.source or {}
    match source.get("type"):
        case "base64":
            return inline(source.get("data"), at, source.get("media_type", "image/png"))
        case "url":
            return picture(source.get("url"), at)
    raise RequestError(f"{at}: a source of an image is of type base64 or url.", param=at)


def _result(content: str | Sequence[GivenBlock], where: str) -> str | list[dict[str, Any]]:
    """Of a tool: text, or parts where there are images."""
    if isinstance(content, str) or not any(block.type == "image" for block in content):
        return _text(content, where)
    return [
        _picture(block, f"{where}[{index}]")
        if block.type == "image"
        else {"type": "text", "text": _text_of(block, f"{where}[{index}]")}
        for index, block in enumerate(content)
    ]


def _text(content: str | Sequence[GivenBlock], where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_of(block, f"{where}[{index}]") for index, block in enumerate(content))


def _text_of(block: GivenBlock, at: str) -> str:
    if block.type != "text":
        raise RequestError(
            f"{at}: a block of type {block.type!r} is not supported here; this model takes text.", param=at
        )
    text: str = _given(block, "text", at)
    return text


def _given(block: GivenBlock, name: str, at: str) -> Any:
    value = getattr(block, name)
    if value is None:
        raise RequestError(f"{at}.{name} is missing.", param=f"{at}.{name}")
    return value
