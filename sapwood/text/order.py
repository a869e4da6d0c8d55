"""System messages for templates that know one, at the beginning."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

Message = dict[str, Any]
SYSTEMS = ("system", "developer")


def is_ordered(messages: list[Message]) -> bool:
    """Whether there is no system message but one at the beginning."""
    return not any(message["role"] in SYSTEMS for message in messages[1:])


def ordered(messages: list[Message]) -> list[Message]:
    """Those at the beginning are one, and a later one stays where it is, so that what stands before it does not change while
    a conversation grows: it is the end of what a user or a tool says before it, else the beginning of what the user says next."""
    first = list(takewhile(lambda message: message["role"] in SYSTEMS, messages))
    told: list[Message] = []
    if first:
        told.append({**first[0], "content": "\n\n".join(filter(None, map(text_of, first)))})
    waiting: Message | None = None  # said by the system behind an answer, told as a user's
    for message in messages[len(first) :]:
        last = told[-1] if told else None
        if message["role"] in SYSTEMS and last is not None and last["role"] in ("user", "tool"):
            told[-1] = _with(last, message)
            waiting = told[-1] if waiting is last else None
        elif message["role"] in SYSTEMS:
            waiting = {"role": "user", "content": text_of(message)}
            told.append(waiting)
        elif message["role"] == "user" and waiting is not None and last is waiting:
            told[-1], waiting = {**message, "content": _with(waiting, message)["content"]}, None
        else:
            told.append(message)
    return told


def text_of(message: Message) -> str:
    """The text of a message, or of its parts that are text."""
    content = message.get("content")
    return (
        "\n".join(part["text"] for part in content if part["type"] == "text")
        if isinstance(content, list)
        else content or ""
    )


def _with(message: Message, more: Message) -> Message:
    """A message that goes on with the content of another."""
    contents = message.get("content") or "", more.get("content") or ""
    if all(isinstance(content, str) for content in contents):
        return {**message, "content": "\n\n".join(filter(None, contents))}
    parts = [[{"type": "text", "text": content}] if isinstance(content, str) else content for content in contents]
    return {**message, "content": [*parts[0], *parts[1]]}
