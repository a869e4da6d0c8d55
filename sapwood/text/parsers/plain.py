"""Tools for a model whose template does not know of them: they are told in words, and calls are written as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_TOLD = """\
You can call functions. Each is described by a JSON object on a line of its own:
<tools>
{tools}
</tools>
To call a function, write its name and its arguments as JSON between these tags, and nothing behind them:
<tool_call>
{{"name": "the name of the function", "arguments": {{"name of an argument": "its value"}}}}
</tool_call>"""


def in_words(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> list[Message]:
    """The messages as any template can print them: tools in the system message, calls and results as text."""
    said = [_said(message) for message in messages]
    if not tools:
        return said
    told = _TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if said and isinstance(said[0], dict) and said[0].get("role") == "system":
        return [{**said[0], "content": _around("", said[0], f"\n\n{told}")}, *said[1:]]
    return [{"role": "system", "content": told}, *said]


def _said(message: Any) -> Any:
    if not isinstance(message, dict):
        return message  # the template's renderer says what is wrong with it
    if message.get("role") == "tool":
        return {"role": "user", "content": _around("<tool_response>\n", message, "\n</tool_response>")}
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    parts = [_text(message), *map(_call, calls)]
    return {"role": message["role"], "content": "\n".join(filter(None, parts))}


def _around(before: str, message: Message, behind: str) -> Any:
    """What a message says between two texts: text, or parts where there are images."""
    content = message.get("content")
    if isinstance(content, list) and any(isinstance(part, dict) and part.get("type") == "image" for part in content):
        parts = ({"type": "text", "text": text} for text in (before, behind))
        return [next(parts), *content, next(parts)]
    return f"{before}{_text(message)}{behind}".lstrip()


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return ""
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text or "{}"}}}\n</tool_call>'


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""
