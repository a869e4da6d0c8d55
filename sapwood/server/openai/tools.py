"""OpenAI's way to offer tools."""

from __future__ import annotations

from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server import functions
from sapwood.server.body import field_error
from sapwood.server.calling import Toolbox
from sapwood.server.functions import Choice
from sapwood.server.openai.protocol import ChatRequest


class Name(msgspec.Struct, kw_only=True):
    name: str


class Chosen(msgspec.Struct, kw_only=True):
    type: str = "function"
    function: Name | None = None


class Allowed(msgspec.Struct, kw_only=True):
    mode: str = "auto"
    tools: list[Chosen] = []


class ToolChoice(msgspec.Struct, kw_only=True):
    """`tool_choice` as an object: one function, or some that are allowed."""

    type: str = "function"
    function: Name | None = None
    allowed_tools: Allowed | None = None


def toolbox_of(body: ChatRequest, *, reads: bool) -> Toolbox | None:
    """A request's tools, None without any. `reads`: this server reads calls. Raises RequestError naming the field."""
    tools, choice = body.tools or [], _choice(body.tool_choice)
    declared = [functions.declared(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    return functions.toolbox_of(tools, declared, choice, many=body.parallel_tool_calls is not False, reads=reads)


def _choice(choice: str | dict[str, Any] | None) -> Choice:
    if choice in (None, "auto", "none"):
        return Choice(never=choice == "none")
    if choice == "required":
        return Choice(must=True)
    if isinstance(choice, dict):
        try:
            given = msgspec.convert(choice, ToolChoice)
        except msgspec.ValidationError as error:
            raise field_error(error, within="tool_choice") from None
        if given.type == "function" and given.function is not None:
            return Choice([given.function.name], must=True)
        allowed = given.allowed_tools
        if given.type == "allowed_tools" and allowed is not None and allowed.mode in ("auto", "required"):
            names = [one.function.name for one in allowed.tools if one.function is not None]
            if names and len(names) == len(allowed.tools):
                return Choice(names, must=allowed.mode == "required")
    raise RequestError(
        "tool_choice must be none, auto, required, "
        '{"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}.',
        param="tool_choice",
    )
