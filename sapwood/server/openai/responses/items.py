"""Items that come in: the turns of a conversation as clients send them, and as messages for the template."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server.body import field_error
from sapwood.server.fields import InputAudio
from sapwood.server.pictures import picture, sound

Item = dict[str, Any]

_MARK = "sapwood1:"
_TEXTS = ("input_text", "output_text", "text", "refusal")
_PREFIXES = {
    "message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco",
    "custom_tool_call": "ctc", "custom_tool_call_output": "ctco",
}  # fmt: skip


class Part(msgspec.Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    input_audio: InputAudio | None = None
    file_id: str | None = None


class Said(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class Thought(msgspec.Struct, kw_only=True):
    summary: list[Part] = []
    content: list[Part] | None = None
    encrypted_content: str | None = None


class Call(msgspec.Struct, kw_only=True):
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class CustomCall(msgspec.Struct, kw_only=True):
    call_id: str
    name: str
    input: str
    namespace: str | None = None


class Output(msgspec.Struct, kw_only=True):
    call_id: str
    output: str | list[Part]


def new_id(type: str) -> str:
    return f"{_PREFIXES[type]}_{secrets.token_hex(16)}"


def sealed(thought: str) -> str:
    """A thought as `encrypted_content`. It is hidden from nobody: clients that keep all themselves can send it back."""
    return _MARK + base64.b64encode(thought.encode()).decode()


def joined(namespace: str | None, name: str) -> str:
    """What a function of a namespace is called before the model."""
    return f"{namespace}.{name}" if namespace else name


def items_of(given: str | Sequence[Item] | None) -> list[Item]:
    """The input as a list of items, each with its type and an id. Raises RequestError."""
    if not given:
        raise RequestError("input is missing; it is a text, or a list of items.", param="input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_whole(item, f"input[{index}]") for index, item in enumerate(given)]


def _whole(item: Item, where: str) -> Item:
    kind = item.get("type", "message" if "role" in item else None)
    if not isinstance(kind, str) or kind not in _PREFIXES:
        what = "needs a type" if kind is None else f"is of type {kind!r}, which is not supported"
        raise RequestError(f"{where} {what}; items are {', '.join(_PREFIXES)}.", param=f"{where}.type")
    id = item.get("id")
    whole = {**item, "id": id if isinstance(id, str) and id else new_id(kind), "type": kind}
    if kind == "message":
        whole.setdefault("status", "completed")
        if isinstance(content := item.get("content"), str):
            of_model = item.get("role") == "assistant"
            whole["content"] = [
                {"type": "output_text", "text": content, "annotations": []}
                if of_model
                else {"type": "input_text", "text": content}
            ]
    return whole


class Conversation:
    """Makes messages of items: what the model said in one turn, thoughts, text and calls, becomes one message.

    System messages at the beginning become one, since many templates know one only.
    """

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._calls: set[str] = set()
        if instructions:
            self.messages.append({"role": "system", "content": instructions})

    def add(self, items: Sequence[Item], name: str) -> None:
        """Raises RequestError naming the field. `name` is what the list is called."""
        for index, item in enumerate(items):
            self._add(item, f"{name}[{index}]")

    def _add(self, item: Item, where: str) -> None:
        match item["type"]:
            case "message":
                self._say(_read(Said, item, where), where)
            case "reasoning":
                self._think(_read(Thought, item, where), where)
            case "function_call":
                call = _read(Call, item, where)
                self._call(call.call_id, joined(call.namespace, call.name), call.arguments)
            case "custom_tool_call":
                custom = _read(CustomCall, item, where)
                arguments = json.dumps({"input": custom.input}, ensure_ascii=False)  # spaced, as models write it
                self._call(custom.call_id, joined(custom.namespace, custom.name), arguments)
            case _:
                self._answer(_read(Output, item, where), where)

    def _say(self, said: Said, where: str) -> None:
        content = _content(said.content, f"{where}.content")
        if said.role == "assistant":
            self._turn("content", "tool_calls")["content"] = content
        elif said.role != "user" and len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self.messages[0]["content"] += "\n\n" + _flat(content)
        elif said.role != "user" and not self.messages:
            self.messages.append({"role": "system", "content": _flat(content)})
        else:
            self.messages.append({"role": said.role, "content": content})

    def _think(self, thought: Thought, where: str) -> None:
        text = "\n".join(part.text or "" for part in thought.content or thought.summary)
        if thought.encrypted_content is not None and not thought.content:
            text = _unsealed(thought.encrypted_content, f"{where}.encrypted_content")
        if text:
            self._turn("reasoning_content", "content", "tool_calls")["reasoning_content"] = text

    def _call(self, call_id: str, name: str, arguments: str) -> None:
        function = {"name": name, "arguments": arguments}
        self._turn().setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        self._calls.add(call_id)

    def _answer(self, output: Output, where: str) -> None:
        if output.call_id not in self._calls:
            raise RequestError(
                f"{where}.call_id: there is no call {output.call_id!r} before this output.", param=f"{where}.call_id"
            )
        content = _content(output.output, f"{where}.output")
        self.messages.append({"role": "tool", "tool_call_id": output.call_id, "content": content})

    def _turn(self, *ended_by: str) -> dict[str, Any]:
        """The model's message that is being put together; a new one where it has one of `ended_by` already."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or any(last.get(name) is not None for name in ended_by):
            last = {"role": "assistant"}
            self.messages.append(last)
        return last


def _read(type: type[Any], item: Item, where: str) -> Any:
    try:
        return msgspec.convert(item, type)
    except msgspec.ValidationError as error:
        raise field_error(error, within=where) from None


def _content(content: str | list[Part], where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts = []
    for index, part in enumerate(content):
        if part.type == "input_image":
            parts.append(picture(part.image_url, f"{where}[{index}]"))
            continue
        if part.type == "input_audio":
            parts.append(sound(part.input_audio.data if part.input_audio else None, f"{where}[{index}]"))
            continue
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in _TEXTS or text is None:
            raise RequestError(
                f"{where}[{index}]: a part of type {part.type!r} is not supported; this model takes text.",
                param=f"{where}[{index}]",
            )
        parts.append({"type": "text", "text": text})
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _flat(content: str | list[dict[str, Any]]) -> str:
    """Of instructions, which are text."""
    if isinstance(content, str):
        return content
    if (shown := next((part for part in content if part["type"] != "text"), None)) is not None:
        raise RequestError(
            f"{shown['at']}: instructions have no {shown['type']}; send it as a user's.", param=shown["at"]
        )
    return "\n".join(part["text"] for part in content)


def _unsealed(sealed: str, where: str) -> str:
    try:
        if not sealed.startswith(_MARK):
            raise ValueError
        return base64.b64decode(sealed.removeprefix(_MARK), validate=True).decode()
    except (ValueError, binascii.Error):
        raise RequestError(
            f"{where} was not made by this server; leave the item out, or give its content.", param=where
        ) from None
